//! Callbacks over HTTP/1.1: keep-alive connections, one request at a time on each, as a vendor would send them.
//!
//! Requests are built once, and only the task's number is written into them, so that what is measured is the server. Either as
//! many as are answered ([`Load`]), or on a schedule that waits for nobody ([`send_on_schedule`]).

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::counters::{Counters, slowest};
use anyhow::{Result, anyhow, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

/// Decimal digits of a task's number in its id: more than are ever counted.
const DIGITS: usize = 13;
/// What a task id begins with; found in an event by it.
const TASK_PREFIX: &str = "bench-task-";
/// The prompt makes an event of about 600 bytes of a callback, the size that the goals are about.
const PROMPT_BYTES: usize = 300;
/// Deliveries that may be under way, by which events go ahead of the slowest subscription: a tenth of a second's at the rates
/// seen, 2,000 events with a hundred subscriptions.
const DELIVERIES_AHEAD: u64 = 200_000;
/// How often a window is moved, and asked again while nothing may be sent: a hundredth of that time.
const PERMISSION_POLL: Duration = Duration::from_millis(1);

/// Between the making of a schedule and its start: connections are opened meanwhile.
const START_DELAY: Duration = Duration::from_millis(200);

/// A task's id.
pub fn task_id(number: u64) -> String {
    format!("{TASK_PREFIX}{number:0DIGITS$}")
}

/// The number of the task that an encoded event is about.
pub fn task_number(event: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(event, TASK_PREFIX.as_bytes())? + TASK_PREFIX.len();
    let digits = event.get(at..at + DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A finished task as the vendor would report it.
pub fn body(number: u64) -> Vec<u8> {
    let (task_id, prompt) = (task_id(number), "a cat that rides a bicycle, ".repeat(11));
    serde_json::json!({
        "generation_id": task_id,
        "status": "completed",
        "prompt": &prompt[..PROMPT_BYTES],
        "video_url": format!("https://cdn.runblob.io/videos/{task_id}.mp4"),
        "created_at": "2025-12-06T21:43:03.374000",
        "completed_at": "2025-12-06T21:44:06.143000",
        "seed": 7,
        "error": null,
    })
    .to_string()
    .into_bytes()
}

/// A request in which only the task's number changes.
#[derive(Clone, Debug)]
struct Request {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Request {
    fn new(product: &str) -> Self {
        Self::of_body(product, body(0))
    }

    fn of_body(product: &str, body: Vec<u8>) -> Self {
        let head = format!(
            "POST /webhook/{product} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head.into_bytes(), body].concat();
        let places = memchr::memmem::find_iter(&bytes, TASK_PREFIX)
            .map(|at| at + TASK_PREFIX.len())
            .collect();
        Self { bytes, places }
    }

    fn of_task(&mut self, mut number: u64) -> &[u8] {
        let mut digits = [b'0'; DIGITS];
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        for &at in &self.places {
            self.bytes[at..at + DIGITS].copy_from_slice(&digits);
        }
        &self.bytes
    }
}

/// One keep-alive connection.
struct Connection {
    stream: TcpStream,
    request: Request,
    answer: Vec<u8>,
}

impl Connection {
    async fn open(ingest: SocketAddr, product: &str) -> Result<Self> {
        let stream = TcpStream::connect(ingest).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: Request::new(product),
            answer: Vec::with_capacity(4096),
        })
    }

    /// Sends a callback and waits for its answer, which has to be 200.
    async fn post(&mut self, number: u64) -> Result<()> {
        self.stream.write_all(self.request.of_task(number)).await?;
        self.answer.clear();
        while !is_whole(&self.answer)? {
            ensure!(
                self.stream.read_buf(&mut self.answer).await? > 0,
                "the connection was closed"
            );
        }
        if !self.answer.starts_with(b"HTTP/1.1 200 ") {
            bail!("answered {}", String::from_utf8_lossy(&self.answer));
        }
        Ok(())
    }
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head_bytes) = memchr::memmem::find(answer, b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = &answer[..head_bytes];
    let at = memchr::memmem::find(head, LENGTH)
        .ok_or_else(|| anyhow!("an answer without a length"))?
        + LENGTH.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let body_bytes = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Ok(answer.len() >= head_bytes + 4 + body_bytes)
}

/// Sends callbacks of tasks whose prompts have so many bytes, one after the other.
pub async fn send_large(
    ingest: SocketAddr,
    product: &str,
    count: u64,
    prompt_bytes: usize,
) -> Result<()> {
    let body = serde_json::json!({
        "generation_id": task_id(0),
        "status": "completed",
        "prompt": "x".repeat(prompt_bytes),
        "video_url": "https://cdn.runblob.io/videos/large.mp4",
    });
    let mut connection = Connection::open(ingest, product).await?;
    connection.request = Request::of_body(product, body.to_string().into_bytes());
    for number in 0..count {
        connection.post(number).await?;
    }
    Ok(())
}

/// The numbers of the tasks that may be sent, each once.
#[derive(Debug)]
pub struct Supply {
    next: AtomicU64,
    end: AtomicU64,
}

impl Supply {
    /// As many as can be sent.
    pub fn unlimited() -> Arc<Self> {
        Self::from(0)
    }

    /// The same, from some number on.
    pub fn from(first: u64) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(first),
            end: AtomicU64::new(u64::MAX),
        })
    }

    /// Those below `end`, until it is moved.
    pub fn up_to(end: u64) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicU64::new(0),
            end: AtomicU64::new(end),
        })
    }

    /// The next number, when it is allowed.
    pub async fn take(&self) -> u64 {
        loop {
            let end = self.end.load(Ordering::Relaxed);
            let next = |next| (next < end).then_some(next + 1);
            match self
                .next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            {
                Ok(taken) => return taken,
                Err(_) => sleep(PERMISSION_POLL).await,
            }
        }
    }
}

/// Keeps a supply some way ahead of the slowest receiver, so that no server drops events or goes back to its log. Ends when it is
/// dropped.
#[derive(Debug)]
pub struct Window {
    /// What may be sent.
    pub supply: Arc<Supply>,
    _mover: JoinSet<()>,
}

impl Window {
    /// Follows the receivers.
    pub fn ahead_of(received: &Counters) -> Self {
        let ahead = DELIVERIES_AHEAD / received.len() as u64;
        let supply = Supply::up_to(ahead);
        let (moved, received) = (Arc::clone(&supply), Arc::clone(received));
        let mut mover = JoinSet::new();
        mover.spawn(async move {
            loop {
                moved
                    .end
                    .store(slowest(&received) + ahead, Ordering::Relaxed);
                sleep(PERMISSION_POLL).await;
            }
        });
        Self {
            supply,
            _mover: mover,
        }
    }
}

/// Callbacks sent as fast as they are answered; ends when dropped.
#[derive(Debug)]
pub struct Load {
    answered: Arc<AtomicU64>,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
    _tasks: JoinSet<()>,
}

impl Load {
    /// Opens the connections, and sends on each one callback after the other.
    pub async fn start(
        ingest: SocketAddr,
        connections: usize,
        product: &str,
        supply: &Arc<Supply>,
    ) -> Result<Self> {
        let (answered, failure) = (
            Arc::<AtomicU64>::default(),
            Arc::<Mutex<Option<anyhow::Error>>>::default(),
        );
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let mut connection = Connection::open(ingest, product).await?;
            let (supply, answered, failure) = (
                Arc::clone(supply),
                Arc::clone(&answered),
                Arc::clone(&failure),
            );
            tasks.spawn(async move {
                loop {
                    if let Err(error) = connection.post(supply.take().await).await {
                        *failure.lock().expect("nobody panics with it") = Some(error);
                        return;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Ok(Self {
            answered,
            failure,
            _tasks: tasks,
        })
    }

    /// How many were answered 200 so far; an error if any was not.
    pub fn answered(&self) -> Result<u64> {
        match self.failure.lock().expect("nobody panics with it").take() {
            Some(error) => Err(error.context("a callback was not answered 200")),
            None => Ok(self.answered.load(Ordering::Relaxed)),
        }
    }
}

/// Has the tasks numbered below `count` reported, as fast as they are answered.
pub async fn fill(ingest: SocketAddr, connections: usize, product: &str, count: u64) -> Result<()> {
    fill_from(ingest, connections, product, &Supply::up_to(0), count).await
}

/// The same with those that the supply has left below `count`.
pub async fn fill_from(
    ingest: SocketAddr,
    connections: usize,
    product: &str,
    supply: &Arc<Supply>,
    count: u64,
) -> Result<()> {
    let missing = count - supply.end.swap(count, Ordering::Relaxed);
    let load = Load::start(ingest, connections, product, supply).await?;
    while load.answered()? < missing {
        sleep(PERMISSION_POLL).await;
    }
    Ok(())
}

/// Has these tasks reported, one after the other.
pub async fn send_each(
    ingest: SocketAddr,
    product: &str,
    numbers: impl IntoIterator<Item = u64>,
) -> Result<()> {
    let mut connection = Connection::open(ingest, product).await?;
    for number in numbers {
        connection.post(number).await?;
    }
    Ok(())
}

/// When each task is due. Latency is counted from that moment, however late the generator is.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    interval: Duration,
    first: u64,
    count: u64,
}

impl Schedule {
    /// `per_second` tasks a second for `duration`, numbered from `first`, soon: when everything is in place.
    pub fn new(first: u64, per_second: u32, duration: Duration) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        let count = (duration.as_secs_f64() * f64::from(per_second)) as u64;
        Self {
            start: Instant::now() + START_DELAY,
            interval,
            first,
            count,
        }
    }

    /// When a task is due.
    pub fn due(&self, number: u64) -> Instant {
        self.start + self.interval * (number - self.first) as u32
    }

    /// The tasks.
    pub fn numbers(&self) -> Range<u64> {
        self.first..self.first + self.count
    }
}

/// Sends each callback when it is due, whatever became of those before, and returns when all were answered 200.
pub async fn send_on_schedule(
    ingest: SocketAddr,
    connections: usize,
    product: &str,
    schedule: Schedule,
) -> Result<()> {
    let (mut doors, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..connections {
        let mut connection = Connection::open(ingest, product).await?;
        let (door, mut due) = mpsc::unbounded_channel();
        doors.push(door);
        tasks.spawn(async move {
            while let Some(number) = due.recv().await {
                connection.post(number).await?;
            }
            anyhow::Ok(())
        });
    }
    // A thread, because the runtime's timers are right to a millisecond only.
    thread::spawn(move || {
        for (number, door) in schedule.numbers().zip(doors.iter().cycle()) {
            thread::sleep(
                schedule
                    .due(number)
                    .saturating_duration_since(Instant::now()),
            );
            if door.send(number).is_err() {
                return; // a connection that has failed is told of below
            }
        }
    });
    tasks.join_all().await.into_iter().collect()
}
