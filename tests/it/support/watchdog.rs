//! Finds serving threads of the broker that block. They may wait for sockets (epoll), for work
//! (futex), for memory or for the processor, and for nothing else.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a serving thread may stay in one system call.
const BLOCKED_MAX: Duration = Duration::from_millis(100);
const PERIOD: Duration = Duration::from_millis(40);
/// Names of the serving threads. The main thread, which handles signals, is watched as well.
const SERVING: [&str; 2] = ["serve", "ingest"];
/// Allowed calls: epoll_wait, epoll_pwait, epoll_pwait2, futex, nanosleep, clock_nanosleep; those
/// for memory, which wait for each other on a busy machine: mmap, mprotect, munmap, brk, madvise;
/// and exit, exit_group.
#[cfg(target_arch = "x86_64")]
const ALLOWED: &[u32] = &[232, 281, 441, 202, 35, 230, 9, 10, 11, 12, 28, 60, 231];
#[cfg(target_arch = "aarch64")]
const ALLOWED: &[u32] = &[22, 441, 98, 101, 115, 222, 226, 215, 214, 233, 93, 94];

/// Watches one process until it is dropped.
pub struct Watchdog {
    found: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
}

impl Watchdog {
    pub fn of(pid: u32) -> Self {
        let watchdog = Self {
            found: Arc::default(),
            stop: Arc::default(),
        };
        let (found, stop) = (Arc::clone(&watchdog.found), Arc::clone(&watchdog.stop));
        thread::spawn(move || {
            let mut seen = HashMap::new();
            while !stop.load(Ordering::Relaxed) {
                if let Some(blocked) = look(pid, &mut seen) {
                    found.lock().unwrap().get_or_insert(blocked);
                }
                thread::sleep(PERIOD);
            }
        });
        watchdog
    }

    /// A description of the first thread that was blocked, if any.
    pub fn found(&self) -> Option<String> {
        self.found.lock().unwrap().clone()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// By thread: its system call, its number of voluntary context switches, and when both were seen
/// first.
type Seen = HashMap<u32, (String, String, Instant)>;

fn look(pid: u32, seen: &mut Seen) -> Option<String> {
    // Taken before anything is read: a delay of this thread must not make a call look longer.
    let now = Instant::now();
    let mut found = None;
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let (Some(id), path) = (
            task.file_name().to_str().and_then(|name| name.parse().ok()),
            task.path(),
        ) else {
            continue;
        };
        match suspicious(pid, id, &path) {
            None => drop(seen.remove(&id)),
            // The same call all the time: in a new one it would have switched at least once.
            Some((call, switches)) => match seen.get(&id) {
                Some((before, then, since)) if (before, then) == (&call, &switches) => {
                    if now.duration_since(*since) >= BLOCKED_MAX {
                        let name = read(&path, "comm");
                        let (what, place) = (read(&path, "wchan"), now.duration_since(*since));
                        found = Some(format!(
                            "thread {} was in system call {call} ({what}) for {place:?}",
                            name.trim()
                        ));
                    }
                }
                _ => drop(seen.insert(id, (call, switches, now))),
            },
        }
    }

    found
}

/// The system call of a serving thread, unless it is allowed, and the thread's number of context
/// switches.
fn suspicious(pid: u32, id: u32, path: &Path) -> Option<(String, String)> {
    // "running" (also while it waits for a processor), -1 outside of any call, or the number of the
    // call and its arguments.
    let call = read(path, "syscall");
    let number = call.split(' ').next()?.parse::<u32>().ok()?;
    if ALLOWED.contains(&number) {
        return None;
    }
    let serves = id == pid || SERVING.contains(&read(path, "comm").trim());
    let status = serves.then(|| read(path, "status"))?;
    // One that a signal has stopped does not wait for anything.
    let is_stopped = |line: &str| line.starts_with("State:") && line.contains("stopped");
    if status.lines().any(is_stopped) {
        return None;
    }
    let switches = status
        .lines()
        .find(|line| line.starts_with("voluntary_ctxt_switches"))?;
    Some((call.trim().to_owned(), switches.to_owned()))
}

/// A file of /proc; empty if the thread has ended.
fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap_or_default()
}

#[test]
fn a_thread_that_waits_for_a_file_is_found_and_one_that_waits_for_work_is_not() {
    let (reader, writer) = std::io::pipe().unwrap();
    let waits = |command: &str, stdin: std::process::Stdio| {
        std::process::Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(stdin)
            .spawn()
            .unwrap()
    };

    let mut blocked = waits("cat", reader.into());
    let watchdog = Watchdog::of(blocked.id());
    let begun = Instant::now();
    while watchdog.found().is_none() {
        assert!(
            begun.elapsed() < super::PATIENCE,
            "a thread that reads a pipe is blocked"
        );
        thread::sleep(PERIOD);
    }

    drop(writer);
    blocked.wait().unwrap();

    let mut sleeps = waits("sleep 1", std::process::Stdio::null());
    let watchdog = Watchdog::of(sleeps.id());
    sleeps.wait().unwrap();

    assert_eq!(watchdog.found(), None);
}
