//! Processes under measurement: started with a directory of their own, looked at through `/proc`, killed when dropped.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// Time for a process to say that it is ready: a million streams take theirs.
const START_PATIENCE: Duration = Duration::from_secs(600);
/// Lines of a process that are shown should it fail.
const LAST_LINES: usize = 20;

/// The stream of a process that tells when it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// On standard output.
    Stdout,
    /// On standard error.
    Stderr,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts a process and follows what it says.
    pub fn start(mut command: Command, says: Says) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        match says {
            Says::Stdout => command.stdout(Stdio::piped()),
            Says::Stderr => command.stderr(Stdio::piped()),
        };
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let from: Box<dyn Read + Send> = match says {
            Says::Stdout => Box::new(
                child
                    .stdout
                    .take()
                    .context("standard output was asked for")?,
            ),
            Says::Stderr => Box::new(
                child
                    .stderr
                    .take()
                    .context("standard error was asked for")?,
            ),
        };
        let (sender, lines) = mpsc::unbounded_channel();
        let last_lines = Arc::<Mutex<VecDeque<String>>>::default();
        let kept = Arc::clone(&last_lines);
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if let Ok(mut kept) = kept.lock() {
                    kept.push_back(line.clone());
                    kept.truncate_front_to(LAST_LINES);
                }
                // A receiver that has enough is gone.
                let _ = sender.send(line).is_ok();
            }
        });
        Ok(Self {
            child,
            lines,
            last_lines,
        })
    }

    /// Waits for a line that says something.
    pub async fn hears<T>(&mut self, mut what: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let heard = async {
            while let Some(line) = self.lines.recv().await {
                if let Some(heard) = what(&line) {
                    return Some(heard);
                }
            }
            None
        };
        match timeout(START_PATIENCE, heard).await {
            Ok(Some(heard)) => Ok(heard),
            Ok(None) => bail!("it has ended: {}", self.last_lines()),
            Err(_) => bail!("it says nothing: {}", self.last_lines()),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and wait for the end.
    pub fn terminate(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }

    /// `kill -9`, and wait for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn last_lines(&self) -> String {
        let lines = self
            .last_lines
            .lock()
            .map(|lines| Vec::from(lines.clone()))
            .unwrap_or_default();
        lines.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill().is_ok();
    }
}

trait TruncateFront {
    fn truncate_front_to(&mut self, len: usize);
}

impl<T> TruncateFront for VecDeque<T> {
    fn truncate_front_to(&mut self, len: usize) {
        self.drain(..self.len().saturating_sub(len));
    }
}

/// An address that nobody listens on; for servers that cannot tell which port the system chose.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// An empty directory on the disk of `target/`, the same for every server: not a file system in memory.
pub fn directory(target: &Path) -> Result<TempDir> {
    let data = target.join("benches/data");
    fs::create_dir_all(&data)?;
    Ok(tempfile::tempdir_in(data)?)
}

/// What one measurement took of the machine.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cost {
    /// How long it was.
    pub seconds: f64,
    /// CPU time of the servers.
    pub server_cpu_seconds: f64,
    /// CPU time of what sends and receives.
    pub generator_cpu_seconds: f64,
}

/// Counts CPU time between two moments.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    servers: Vec<u32>,
    workers: Vec<u32>,
    server_cpu_seconds: f64,
    generator_cpu_seconds: f64,
}

impl Meter {
    /// Starts counting: `workers` generate load beside this process.
    pub fn start(servers: &[&Process], workers: &[&Process]) -> Result<Self> {
        let servers: Vec<_> = servers.iter().map(|server| server.pid()).collect();
        let workers: Vec<_> = workers
            .iter()
            .map(|worker| worker.pid())
            .chain([process::id()])
            .collect();
        Ok(Self {
            started: Instant::now(),
            server_cpu_seconds: cpu_seconds_of(&servers)?,
            generator_cpu_seconds: cpu_seconds_of(&workers)?,
            servers,
            workers,
        })
    }

    /// What was taken since the start.
    pub fn read(&self) -> Result<Cost> {
        self.read_with(&[])
    }

    /// The same, with workers that were started meanwhile.
    pub fn read_with(&self, workers: &[&Process]) -> Result<Cost> {
        let workers: Vec<_> = workers.iter().map(|worker| worker.pid()).collect();
        Ok(Cost {
            seconds: self.started.elapsed().as_secs_f64(),
            server_cpu_seconds: cpu_seconds_of(&self.servers)? - self.server_cpu_seconds,
            generator_cpu_seconds: cpu_seconds_of(&self.workers)? - self.generator_cpu_seconds
                + cpu_seconds_of(&workers)?,
        })
    }
}

fn cpu_seconds_of(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

/// User and system time of a process, from the 14th and 15th field of its `stat` (see proc_pid_stat(5)).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses, which may have spaces.
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields)
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of a process that is in RAM.
pub fn resident_bytes(process: &Process) -> Result<u64> {
    memory_bytes(process, "VmRSS:")
}

/// The most that it ever was.
pub fn peak_bytes(process: &Process) -> Result<u64> {
    memory_bytes(process, "VmHWM:")
}

fn memory_bytes(process: &Process, name: &'static str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .ok_or_else(|| anyhow!("no {name}"))?;
    Ok(kilobytes.trim().parse::<u64>()? * 1024)
}
