//! Processes of tests: their signals, and ports for them.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::{Pid, Signal, kill_process};

use super::until;

/// Sends a signal that needs no waiting for.
pub fn signal(pid: u32, signal: Signal) {
    assert_ne!(
        signal,
        Signal::STOP,
        "a process runs on for a moment: pause it"
    );
    send(pid, signal);
}

/// `SIGSTOP`, until every thread of the process stands still. `SIGCONT` lets it go on.
pub async fn pause(pid: u32) {
    send(pid, Signal::STOP);
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    until("all threads to stand still", async || {
        let mut threads = fs::read_dir(&tasks).unwrap().map_while(Result::ok);
        threads.all(|thread| stands_still(&thread.path()))
    })
    .await;
}

/// Its state is the first letter behind its name, which is in parentheses. A thread that has ended has none.
fn stands_still(thread: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(thread.join("stat")) else {
        return true;
    };
    let (_, behind_name) = stat.rsplit_once(") ").expect("proc_pid_stat(5)");
    behind_name.starts_with(['T', 'Z', 'X'])
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Ports that Linux gives to nobody by itself: it begins at 32,768 for clients and for port 0.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// An address with a port that nobody listens at, and that no other test is given, for listeners that must know theirs beforehand.
pub fn free_address() -> SocketAddr {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let room = PORTS.end - PORTS.start;
    // Tests of another process begin elsewhere.
    let first = process::id().wrapping_mul(997) % room;
    for _ in 0..room {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (first + given) % room;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap()));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port of {PORTS:?} is free");
}
