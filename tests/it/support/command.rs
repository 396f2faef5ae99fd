//! Runs the binary as a shell does: a command line, its output, and its exit code.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;

use super::{Server, until};

/// A command line of `blobcast`, words separated by spaces.
#[derive(Debug)]
pub struct Cli {
    command: Command,
    stdin: Option<Vec<u8>>,
}

/// The result of a finished command.
#[derive(Clone, Debug)]
pub struct Ran {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    pub fn new(line: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blobcast"));
        // The environment of this machine must not affect the command under test.
        for (key, _) in
            std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BLOBCAST_"))
        {
            command.env_remove(key);
        }
        command
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .args(line.split_whitespace());
        Self {
            command,
            stdin: None,
        }
    }

    /// Adds a word, which may contain spaces.
    pub fn arg(mut self, word: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    pub fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.command.env(key, value.to_string());
        self
    }

    pub fn current_dir(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Runs it under a umask, in octal.
    pub fn umask(mut self, umask: &str) -> Self {
        self.command = under_umask(&self.command, umask);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Runs it to its end.
    pub async fn run(self) -> Ran {
        self.start().ended().await
    }

    pub fn start(mut self) -> Running {
        let stdin = if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };

        self.command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());

        let mut child = self.command.spawn().unwrap();
        if let (Some(mut pipe), Some(bytes)) = (child.stdin.take(), self.stdin) {
            // The command may be done before it has read everything.
            thread::spawn(move || pipe.write_all(&bytes).is_ok());
        }

        let (stdout, stderr) = (
            Pipe::of(child.stdout.take().unwrap()),
            Pipe::of(child.stderr.take().unwrap()),
        );
        Running {
            child,
            stdout,
            stderr,
        }
    }

    /// Starts it with a terminal of `columns` as its standard output.
    pub fn start_on_terminal(mut self, columns: u16) -> Running {
        let (ours, theirs) = terminal(columns);
        self.command
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let (stdout, stderr) = (Pipe::of(ours), Pipe::of(child.stderr.take().unwrap()));
        Running {
            child,
            stdout,
            stderr,
        }
    }

    /// Starts it with a standard output that is closed after `bytes`, as by `head`.
    pub fn start_with_stdout_closed_after(mut self, bytes: usize) -> Running {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let stdout = Pipe::of(child.stdout.take().unwrap().take(bytes as u64));
        let stderr = Pipe::of(child.stderr.take().unwrap());
        Running {
            child,
            stdout,
            stderr,
        }
    }
}

impl Server {
    /// A command line whose environment has the addresses of this broker.
    pub fn cli(&self, line: &str) -> Cli {
        Cli::new(line)
            .env("BLOBCAST_GRPC_URL", format!("http://{}", self.grpc))
            .env("BLOBCAST_INGEST_URL", format!("http://{}", self.ingest))
            .env("BLOBCAST_ADMIN_URL", format!("http://{}", self.admin))
    }
}

impl Ran {
    /// Its standard output. Panics unless it exited with 0.
    pub fn good(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:#?}");
        &self.stdout
    }

    /// The lines of its standard error, without warnings that depend on the disk and memory of this
    /// machine.
    pub fn warnings(&self) -> Vec<&str> {
        let by_machine = [
            "callbacks are refused before the log is full",
            "the limits allow",
        ];
        self.stderr
            .lines()
            .filter(|line| !by_machine.iter().any(|part| line.contains(part)))
            .collect()
    }

    /// Its standard error. Panics unless it exited with `code`.
    pub fn exited(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:#?}");
        &self.stderr
    }

    /// The lines of its standard output as JSON.
    pub fn json_lines(&self) -> Vec<Value> {
        self.good()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// One field of each JSON line.
    pub fn each(&self, field: &str) -> Vec<String> {
        self.json_lines()
            .iter()
            .map(|line| line[field].as_str().unwrap().to_owned())
            .collect()
    }
}

/// A running command; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
}

impl Running {
    /// Starts a command whose standard output and standard error are closed pipes.
    pub fn unread(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        Self {
            child,
            stdout: Pipe::default(),
            stderr: Pipe::default(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// The complete lines of its standard output so far, as JSON.
    pub fn json_lines(&self) -> Vec<Value> {
        let text = self.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until its standard error contains a text.
    pub async fn says(&self, text: &str) {
        until(&format!("`{text}` on standard error"), || {
            std::future::ready(self.stderr().contains(text))
        })
        .await;
    }

    /// Waits until it has printed `count` lines.
    pub async fn prints_lines(&self, count: usize) {
        until(&format!("{count} lines"), || {
            std::future::ready(self.stdout().matches('\n').count() >= count)
        })
        .await;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        super::process::signal(self.pid(), signal);
    }

    /// Waits until it ends.
    pub async fn status(&mut self) -> ExitStatus {
        let mut status = None;
        until("the command to end", || {
            status = self.child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap()
    }

    /// Waits until it ends, and returns the result.
    pub async fn ended(mut self) -> Ran {
        let code = self.status().await.code();
        let closed = || std::future::ready(self.stdout.is_closed() && self.stderr.is_closed());
        until("the rest of its output", closed).await;
        Ran {
            code,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let stdout = self.stdout();
            let last = stdout.lines().count().saturating_sub(5);
            eprintln!("--- standard output, the end:");
            stdout
                .lines()
                .skip(last)
                .for_each(|line| eprintln!("{line}"));
            eprintln!("--- standard error:\n{}", self.stderr());
        }
    }
}

/// Collects the output of a pipe in a thread.
#[derive(Clone, Debug, Default)]
struct Pipe(Arc<Mutex<(Vec<u8>, bool)>>);

impl Pipe {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let pipe = Self::default();
        let into = pipe.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                into.0.lock().unwrap().0.extend(&buffer[..count]);
            }
            drop(from);
            into.0.lock().unwrap().1 = true;
        });
        pipe
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().0).into_owned()
    }

    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// The problems that ended a `serve` without a terminal, one per line, from its log.
pub fn fatal(log: &[u8]) -> String {
    let log = std::str::from_utf8(log).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{log}")));
    let fatal =
        lines.filter(|line| line["target"] == "blobcast::fatal" && line["level"] == "ERROR");
    let problem = |line: Value| {
        let message = line["message"].as_str().unwrap().to_owned();
        let told = ["the broker does not start: ", "the broker ends: "]
            .iter()
            .find_map(|head| message.strip_prefix(head));
        told.unwrap_or_else(|| panic!("{message}")).to_owned() + "\n"
    };
    let told = fatal.map(problem);
    let told: String = told.collect();
    assert!(!told.is_empty(), "no fatal line in {log}");
    told
}

/// A pseudo-terminal of `columns`: the test's end, and the command's.
pub fn terminal(columns: u16) -> (File, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let theirs = File::options().read(true).write(true).open(name).unwrap();
    tcsetwinsize(
        &theirs,
        Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
    .unwrap();
    (File::from(ours), theirs)
}

/// The same command, started by a shell that sets the umask, which a test cannot do for one of its
/// threads.
pub fn under_umask(command: &Command, umask: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("umask {umask}; exec \"$0\" \"$@\""));
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}
