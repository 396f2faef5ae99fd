//! Task subscriptions that wait, held by processes of their own: a hundred thousand streams are a load for their client, too.

use std::{
    env,
    io::{self, Read},
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use prost::Message;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    harness::{Process, Says},
    load::task_id,
    peers::blobcast,
    statistics::Spread,
    subscribers::{Seats, Subscribers},
    wire::{SubscribeResponse, subscribe_response::Content},
};

/// Streams that one process holds.
const PER_PROCESS: usize = 50_000;
/// What a process says of the events that it has received, each in microseconds since the callback's arrival.
const RECEIVED: &str = "received ";
/// How often a process looks whether more events have come.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// Waiting subscriptions, to the tasks from some number on.
#[derive(Debug)]
pub struct Waiting {
    processes: Vec<Process>,
}

impl Waiting {
    /// Opens them, with so many on one connection, and waits until all are live.
    pub async fn open(
        grpc: SocketAddr,
        first: u64,
        count: usize,
        per_connection: usize,
    ) -> Result<Self> {
        let mut this = Self {
            processes: Vec::new(),
        };
        for begin in (0..count).step_by(PER_PROCESS) {
            let part = PER_PROCESS.min(count - begin);
            let numbers = [
                first + begin as u64,
                part as u64,
                per_connection.min(part) as u64,
            ];
            let mut command = Command::new(env::current_exe()?);
            command
                .args([crate::PART, "hold"])
                .arg(grpc.to_string())
                .args(numbers.map(|number| number.to_string()));
            this.processes.push(Process::start(command, Says::Stdout)?);
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

    /// Waits until so many of them have had their event; how long each took from its callback's arrival, in milliseconds.
    pub async fn have_received(&mut self, count: u64) -> Result<Spread> {
        loop {
            let mut millis = Vec::new();
            for process in &mut self.processes {
                let of_line = |line: &str| line.strip_prefix(RECEIVED).map(str::to_owned);
                let micros = process.hears(of_line).await?;
                millis.extend(
                    micros
                        .split_whitespace()
                        .map(|micros| micros.parse::<f64>().map(|micros| micros / 1e3)),
                );
            }
            if millis.len() as u64 >= count {
                let millis: Vec<_> = millis.into_iter().collect::<Result<_, _>>()?;
                return Spread::of(millis).context("nothing was waited for");
            }
        }
    }
}

/// From when the broker had the callback; 0 of another server's events, which do not say.
fn micros_since_arrival(event: &[u8]) -> u128 {
    let arrival =
        SubscribeResponse::decode(event)
            .ok()
            .and_then(|response| match response.content? {
                Content::Event(event) => SystemTime::try_from(event.received_at?).ok(),
                _ => None,
            });
    arrival
        .and_then(|arrival| arrival.elapsed().ok())
        .map_or(0, |elapsed| elapsed.as_micros())
}

/// One of the processes. Ends with the process that has started it.
pub async fn hold(grpc: SocketAddr, first: u64, count: usize, per_connection: usize) -> Result<()> {
    let received = Arc::<Mutex<Vec<u128>>>::default();
    let noted = Arc::clone(&received);
    let on_event = move |_, event: &[u8]| {
        noted
            .lock()
            .expect("nobody panics with it")
            .push(micros_since_arrival(event));
    };
    let request = |number| blobcast::of_task(task_id(first + number as u64));
    let seats = Seats::new(grpc, count / per_connection, per_connection);
    let _subscribers = Subscribers::open(seats, request, on_event).await?;
    println!("live");
    let report = async {
        loop {
            let micros: Vec<_> = received
                .lock()
                .expect("nobody panics with it")
                .iter()
                .map(ToString::to_string)
                .collect();
            println!("{RECEIVED}{}", micros.join(" "));
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
