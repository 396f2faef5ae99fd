//! Task subscriptions that wait, held by processes of their own: a hundred thousand streams are a load for their client, too.

use std::{
    env,
    io::{self, Read},
    net::SocketAddr,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    counters::{counters, total},
    harness::{Process, Says},
    load::task_id,
    peers::blobcast,
    subscribers::{Seats, Subscribers},
};

/// Streams that one process holds.
const PER_PROCESS: usize = 50_000;
/// How often a process looks whether more events have come.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// Waiting subscriptions, to the tasks from some number on.
#[derive(Debug)]
pub struct Waiting {
    processes: Vec<Process>,
    received: Vec<u64>,
}

impl Waiting {
    /// Opens them, with so many on one connection, and waits until all are live.
    pub async fn open(grpc: SocketAddr, first: u64, count: usize, per_connection: usize) -> Result<Self> {
        let mut this = Self { processes: Vec::new(), received: Vec::new() };
        for begin in (0..count).step_by(PER_PROCESS) {
            let part = PER_PROCESS.min(count - begin);
            let numbers = [first + begin as u64, part as u64, per_connection.min(part) as u64];
            let mut command = Command::new(env::current_exe()?);
            command.args([crate::PART, "hold"]).arg(grpc.to_string()).args(numbers.map(|number| number.to_string()));
            this.processes.push(Process::start(command, Says::Stdout)?);
            this.received.push(0);
        }
        for process in &mut this.processes {
            process.hears(|line| (line == "live").then_some(())).await?;
        }
        Ok(this)
    }

    /// For what they take of the machine.
    pub fn processes(&self) -> Vec<&Process> {
        self.processes.iter().collect()
    }

    /// Waits until so many of them have had their event.
    pub async fn have_received(&mut self, count: u64) -> Result<()> {
        while self.received.iter().sum::<u64>() < count {
            for (process, received) in self.processes.iter_mut().zip(&mut self.received) {
                *received = process.hears(|line| line.strip_prefix("received ")?.parse().ok()).await?;
            }
        }
        Ok(())
    }
}

/// One of the processes. Ends with whoever has started it.
pub async fn hold(grpc: SocketAddr, first: u64, count: usize, per_connection: usize) -> Result<()> {
    let received = counters(1);
    let counted = Arc::clone(&received);
    let request = |number| blobcast::of_task(task_id(first + number as u64));
    let seats = Seats::new(grpc, count / per_connection, per_connection);
    let _subscribers = Subscribers::open(seats, request, move |_, _: &[u8]| counted[0].count()).await?;
    println!("live");
    let report = async {
        loop {
            println!("received {}", total(&received));
            sleep(REPORT_INTERVAL).await;
        }
    };
    tokio::select! {
        () = report => {}
        // Its end, because nothing is ever written there.
        ended = spawn_blocking(|| io::stdin().read(&mut [0])) => drop(ended??),
    }
    Ok(())
}
