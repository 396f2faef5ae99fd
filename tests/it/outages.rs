//! A broker that is down while tasks end, or is killed while it recovers them. What it has in the end is judged by the checkers of the
//! guarantees, with the vendor's record of all calls.

use std::{
    collections::{BTreeMap, HashSet},
    fs, mem,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use blobcast::{
    checker::{
        Acknowledged, History, Observed, Stream, check,
        recovery::{self, LoggedEvent, Recovery, Says, Submission, VendorCall},
    },
    simulator::server::{SeenRequest, Settings, SimulatedVendor, State, Step, Target, Task},
    wire::v1::{
        Event, ExpectTasksRequest, Expectation, ListExpectationsRequest, Verification,
        event_service_client::EventServiceClient,
    },
};
use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::{Channel, Endpoint as Address};

use crate::support::{
    AsObserved, Endpoint, Options, Seen, Server, Sub, VendorCase, after, is_recovered, request,
    tasks_of, until, within,
};

/// The labels with which a task is expected: its own, so that an event with another's is noticed.
fn labels_of(id: &str) -> BTreeMap<String, String> {
    [("team", "ads"), ("ref", id)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn expectation(product: &str, id: &str) -> Expectation {
    Expectation {
        product: product.to_owned(),
        task_id: id.to_owned(),
        labels: labels_of(id).into_iter().collect(),
        ..Expectation::default()
    }
}

fn submission(id: &str, is_answered: bool) -> Submission {
    Submission {
        task_id: id.to_owned(),
        labels: labels_of(id),
        is_answered,
    }
}

/// A call of the status API, for the checker.
fn call(seen: &SeenRequest, first: &SeenRequest) -> VendorCall {
    let path = seen.target.split('?').next().unwrap_or_default();
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap();
    let is_task = last != "generations" && !last.starts_with("00000000-");
    VendorCall {
        key: seen.key.clone().unwrap_or_default(),
        at_millis: u64::try_from((seen.at - first.at).as_millis()).unwrap(),
        task_id: is_task.then(|| last.to_owned()),
    }
}

fn logged(event: &Event) -> Option<LoggedEvent> {
    let says = match &event.overdue {
        Some(overdue) if overdue.gave_up => Says::GivenUp,
        Some(_) => Says::Late,
        None if !event.terminal => return None,
        None if event.verification() == Verification::VendorApi => Says::Answered,
        None => Says::CalledBack,
    };
    Some(LoggedEvent {
        event_id: event.event_id.clone(),
        task_id: event.task_id.clone(),
        labels: event.labels.clone().into_iter().collect(),
        says,
        is_conflict: event.conflict,
    })
}

/// The tasks that are expected still.
async fn open(server: &Server) -> HashSet<String> {
    let mut admin = server.admin_service().await;
    let (mut open, mut request) = (HashSet::new(), ListExpectationsRequest::default());
    loop {
        let page = admin.list_expectations(request.clone()).await.unwrap();
        let page = page.into_inner();
        open.extend(page.expectations.into_iter().map(|it| it.task_id));
        if page.next_page_token.is_empty() {
            return open;
        }
        request.page_token = page.next_page_token;
    }
}

/// Judges what reconciling promises, and returns the log.
async fn judge(
    server: &Server,
    vendor: &SimulatedVendor,
    expected: Vec<Submission>,
    calls_per_minute_max: usize,
) -> Vec<Event> {
    // In this order: a task may end meanwhile.
    let open = open(server).await;
    let log = server.log_of_events().await;
    let seen = vendor.checks();
    let is_over = |task_id: &String| {
        let products = ["veo", "seedance"].into_iter();
        let mut tasks = products.filter_map(|product| vendor.task(product, task_id));
        tasks.any(|task| task.state.is_over())
    };
    let tasks = log.iter().map(|event| event.task_id.clone());
    let recovery = Recovery {
        expected,
        open,
        over: tasks.filter(is_over).collect(),
        events: log.iter().filter_map(logged).collect(),
        calls: seen.iter().map(|it| call(it, &seen[0])).collect(),
        calls_per_minute_max,
    };
    assert_eq!(recovery::check(&recovery), []);
    let refused = seen.iter().filter(|it| it.http_status == 429).count();
    assert_eq!(refused, 0, "the vendor counts the calls of a minute, too");
    log
}

fn judge_history(log: &[Event], acknowledged: Vec<Acknowledged>, observed: Vec<Observed>) {
    assert_eq!(observed.len(), log.len(), "the subscriber has seen all");
    let history = History {
        acknowledged,
        log: log.iter().map(AsObserved::observed).collect(),
        streams: vec![Stream {
            task_ids: None,
            observed,
        }],
        ..History::default()
    };
    assert_eq!(check(&history), []);
}

/// Has a stopped broker believe that it was there last so much earlier.
pub fn age_last_there(server: &Server, by: SignedDuration) {
    let path = server.data_dir().join("last-there.json");
    let mut note: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let at = note["at_micros"].as_i64().unwrap();
    note["at_micros"] = (at - i64::try_from(by.as_micros()).unwrap()).into();
    fs::write(&path, note.to_string()).unwrap();
}

#[tokio::test]
async fn five_hundred_tasks_that_ended_in_an_outage_of_ten_minutes_are_there_once_within_the_budget()
 {
    const BUDGET: usize = 50; // the default
    let case = VendorCase::with(Settings {
        retry_gaps: Some(vec![Duration::ZERO; 2]),
        ..Settings::default()
    })
    .await;
    let options = case
        .options()
        .set("reconcile.checks_per_minute_max", BUDGET)
        .set("reconcile.expect_within", "veo=12m");
    let mut server = options.start().await;
    let minutes_ago = |minutes| Timestamp::now() - SignedDuration::from_mins(minutes);

    // Each minute 50 tasks were submitted. Another system uses the key, too, and has its callbacks.
    let (proxy, proxy_address) = Endpoint::answering(&[503; 1_500]).opened().await;
    let ids: Vec<_> = (0..500).map(|n| format!("lost{n}")).collect();
    for n in 0..100 {
        case.has_since("veo", &format!("old{n}"), State::Completed, minutes_ago(60));
    }
    for (id, n) in ids.iter().zip(0..) {
        let mut task = Task::new("veo", id, minutes_ago(11 - n / 50));
        task.callback_url = Some(
            format!("http://{proxy_address}/webhook/veo")
                .parse()
                .unwrap(),
        );
        assert!(case.vendor.add(task));
        if n % 10 == 0 {
            let other = format!("other{n}");
            case.has_since("veo", &other, State::Completed, minutes_ago(11 - n / 50));
        }
    }
    let expectations = ids.iter().map(|id| expectation("veo", id)).collect();
    let mut client = server.events().await;
    let expected = client.expect_tasks(ExpectTasksRequest { expectations });
    let expected = expected.await.unwrap().into_inner().tasks;
    assert!(expected.iter().all(|task| !task.over));

    // The vendor tries each callback three times, and meets a proxy without a broker.
    assert!(server.terminate().await.success());
    age_last_there(&server, SignedDuration::from_mins(10));
    for (id, n) in ids.iter().zip(0..) {
        let state = [State::Completed, State::Failed][usize::from(n % 7 == 0)];
        assert!(case.vendor.set_state("veo", id, state));
        let sent = case.vendor.send_callback("veo", id).await.unwrap();
        assert_eq!((sent.attempts, sent.acknowledged()), (3, None));
    }
    assert_eq!(proxy.seen.lock().unwrap().len(), 1_500);
    server.restart_elsewhere().await;

    let mut sub = server.subscribe(request()).await;
    let events = sub.next_events(ids.len()).await;
    assert!(events.iter().all(is_recovered));
    let found: HashSet<_> = tasks_of(&events).into_iter().collect();
    assert_eq!(found.len(), ids.len());
    until("all to be settled", async || open(&server).await.is_empty()).await;

    let submitted = ids.iter().map(|id| submission(id, true)).collect();
    let log = judge(&server, &case.vendor, submitted, BUDGET).await;
    let observed = events.iter().map(AsObserved::observed).collect();
    judge_history(&log, Vec::new(), observed);
    // Six pages, and one to see that there are no more; a key is tried at each start.
    let calls = case.vendor.checks().len();
    assert!(calls <= 7 + 2, "{calls} calls");
}

#[tokio::test]
async fn a_broker_that_is_killed_while_it_looks_back_at_an_outage_begins_anew() {
    let case = VendorCase::new().await;
    let options = case
        .options()
        .set("reconcile.expect_within", "veo=12m")
        .set("reconcile.outage_min", "30s");
    let mut server = options.start().await;
    case.has("veo", "lost", State::Processing);
    let expectations = vec![expectation("veo", "lost")];
    let mut client = server.events().await;
    let expected = client.expect_tasks(ExpectTasksRequest { expectations });
    expected.await.unwrap();
    assert!(server.terminate().await.success());
    age_last_there(&server, SignedDuration::from_mins(10));
    assert!(case.vendor.set_state("veo", "lost", State::Completed));

    let list = Target::list("veo");
    case.vendor.script_always(list, Step::Silence);
    server.restart_elsewhere().await;
    until("a list to be asked for", async || case.list_calls() > 0).await;
    server.kill();
    case.vendor.clear_scripts();
    server.restart_elsewhere().await;

    let mut sub = server.subscribe(request()).await;
    assert!(is_recovered(&sub.next_event().await));
    assert_eq!(case.checks_of("lost"), 0, "it is not late yet");
}

/// How a run with kills goes.
struct Plan {
    kills: usize,
    /// A broker lives for so long at most.
    life_max: Duration,
    /// Tasks of a product with a list, and of one without.
    tasks: [usize; 2],
    calls_per_minute_max: usize,
}

#[tokio::test]
async fn a_broker_that_is_killed_again_and_again_while_it_recovers_recovers_each_task_once() {
    let plan = Plan {
        kills: 6,
        life_max: Duration::from_millis(1_200),
        tasks: [120, 50],
        calls_per_minute_max: 600,
    };
    recovers(&plan).await;
}

#[tokio::test]
#[ignore = "takes six minutes"]
async fn a_broker_that_is_killed_sixty_times_keeps_the_budget_in_each_minute() {
    let plan = Plan {
        kills: 60,
        life_max: Duration::from_secs(5),
        tasks: [200, 200],
        calls_per_minute_max: 60,
    };
    recovers(&plan).await;
}

/// Submits tasks to a broker that is killed at random moments, until all are recovered.
async fn recovers(plan: &Plan) {
    let seed = std::env::var("BLOBCAST_SEED");
    let seed = seed.map_or_else(|_| fastrand::u64(..), |it| it.parse().unwrap());
    println!("repeat its choices with BLOBCAST_SEED={seed}");
    let mut run = Run::start(plan, seed).await;

    for number in 0..plan.kills {
        let submitting = run.submit_some(plan.kills - number);
        run.call_back_some(plan.kills - number);
        run.live().await;
        if number + 1 == plan.kills {
            run.end_slow_tasks();
        }
        run.server.kill();
        run.submitted(submitting.await.unwrap());
        run.kill_some_starts().await;
        run.server.restart().await;
        run.judge().await;
    }

    let submitting = run.submit_some(1);
    run.submitted(submitting.await.unwrap());
    assert_eq!(run.to_submit, []);
    run.recover_the_rest().await;
}

/// A product and the id of a task.
type TaskName = (&'static str, String);

/// A run with kills, so far.
struct Run {
    rng: Rng,
    case: VendorCase,
    options: Options,
    server: Server,
    life_max: Duration,
    calls_per_minute_max: usize,
    to_submit: Vec<TaskName>,
    expected: Vec<Submission>,
    /// Tasks whose callback is not lost.
    to_call_back: Vec<TaskName>,
    calling_back: JoinSet<Acknowledged>,
    /// Tasks that are not over yet.
    slow: Vec<TaskName>,
    /// What a subscriber has seen that comes back after each kill.
    observed: Arc<Mutex<Vec<Observed>>>,
}

impl Run {
    async fn start(plan: &Plan, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let case = VendorCase::with(Settings {
            checks_per_minute_max: plan.calls_per_minute_max,
            retry_gaps: Some(Vec::new()), // the test tries again itself
            ..Settings::default()
        })
        .await;
        let options = case
            .options()
            .set("reconcile.checks_per_minute_max", plan.calls_per_minute_max)
            .set("reconcile.outage_min", "2s");
        let server = options.clone().start().await;

        let [listed, single] = plan.tasks;
        let listed = (0..listed).map(|n| ("veo", format!("veo-{n}")));
        let single = (0..single).map(|n| ("seedance", format!("seedance-{n}")));
        let mut tasks: Vec<_> = listed.chain(single).collect();
        rng.shuffle(&mut tasks);

        let (mut to_call_back, mut slow) = (Vec::new(), Vec::new());
        for (number, task) in tasks.iter().enumerate() {
            let state = match rng.usize(0..10) {
                // Submitted early, so that several brokers find it late.
                0 if number >= tasks.len() / 2 => {
                    slow.push(task.clone());
                    State::Processing
                }
                1 => State::Failed,
                2 => {
                    to_call_back.push(task.clone());
                    State::Completed
                }
                _ => State::Completed,
            };
            let (product, id) = task;
            let url = format!("http://{}/webhook/{product}", server.ingest);
            let mut task = Task::new(product, id, Timestamp::now());
            task.callback_url = Some(url.parse().unwrap());
            assert!(case.vendor.add(task.in_state(state, Timestamp::now())));
        }

        let observed = Arc::default();
        tokio::spawn(follow(server.grpc, Arc::clone(&observed)));
        Self {
            rng,
            case,
            options,
            server,
            life_max: plan.life_max,
            calls_per_minute_max: plan.calls_per_minute_max,
            to_submit: tasks,
            expected: Vec::new(),
            to_call_back,
            calling_back: JoinSet::new(),
            slow,
            observed,
        }
    }

    /// Begins to submit a share of the tasks, from the end. Returns those that it has tried, and whether they were answered.
    fn submit_some(&mut self, share: usize) -> JoinHandle<Vec<(TaskName, bool)>> {
        let left = self.to_submit.len();
        let some = self.to_submit.split_off(left - left / share);
        let mut client = EventServiceClient::new(lazily(self.server.grpc));
        tokio::spawn(async move {
            let mut tried = Vec::new();
            for batch in some.chunks(5) {
                let expectations = batch.iter().map(|(product, id)| expectation(product, id));
                let expectations = expectations.collect();
                let answer = client.expect_tasks(ExpectTasksRequest { expectations });
                let is_answered = answer.await.is_ok();
                tried.extend(batch.iter().map(|task| (task.clone(), is_answered)));
            }
            tried
        })
    }

    fn submitted(&mut self, tried: Vec<(TaskName, bool)>) {
        for (task, is_answered) in tried {
            self.expected.retain(|known| known.task_id != task.1);
            self.expected.push(submission(&task.1, is_answered));
            if !is_answered {
                self.to_submit.push(task);
            }
        }
    }

    /// Begins to send a share of the callbacks that are not lost, each at some time in this life, until it is taken.
    fn call_back_some(&mut self, share: usize) {
        let left = self.to_call_back.len();
        for (product, id) in self.to_call_back.split_off(left - left / share) {
            let vendor = Arc::clone(&self.case.vendor);
            let wait = self.some_of(self.life_max);
            self.calling_back.spawn(async move {
                has_passed(wait).await;
                let taken = async {
                    loop {
                        let sent = vendor.send_callback(product, &id).await.unwrap();
                        if let Some(taken) = sent.acknowledged() {
                            return taken.event_id.unwrap();
                        }
                        has_passed(BETWEEN_TRIES).await; // the broker is down
                    }
                };
                let event_id = within("a callback to be taken", taken).await;
                Acknowledged {
                    event_id,
                    task_id: id,
                }
            });
        }
    }

    /// Waits for a moment to kill the broker: at any time, or soon after an answer of the vendor.
    async fn live(&mut self) {
        let (began, life) = (Instant::now(), self.some_of(self.life_max));
        let vendor = Arc::clone(&self.case.vendor);
        let answers = || {
            let checks = vendor.checks();
            checks.iter().filter(|it| it.http_status != 0).count()
        };
        let ends_at = self.rng.bool().then(|| answers() + self.rng.usize(1..8));
        until("a moment to kill the broker", async || {
            began.elapsed() >= life || ends_at.is_some_and(|count| answers() >= count)
        })
        .await;
        has_passed(self.some_of(Duration::from_millis(3))).await;
    }

    /// Starts a few more that are killed before they are ready, or soon after.
    async fn kill_some_starts(&mut self) {
        let listen = [self.server.ingest, self.server.grpc, self.server.admin];
        while self.rng.usize(0..3) == 0 {
            let mut command = self.options.command(&self.server.data_dir(), listen);
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = quiet.spawn().unwrap();
            has_passed(self.some_of(Duration::from_millis(600))).await;
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn end_slow_tasks(&mut self) {
        for (product, id) in self.slow.drain(..) {
            assert!(self.case.vendor.set_state(product, &id, State::Completed));
        }
    }

    fn some_of(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.f64())
    }

    async fn judge(&self) -> Vec<Event> {
        let expected = self.expected.clone();
        let (vendor, most) = (&self.case.vendor, self.calls_per_minute_max);
        let log = judge(&self.server, vendor, expected, most).await;
        keeps_pace(&vendor.checks(), most);
        log
    }

    async fn recover_the_rest(mut self) {
        loop {
            let left = open(&self.server).await.len();
            if left == 0 {
                break;
            }
            until("one more to be recovered", async || {
                open(&self.server).await.len() < left
            })
            .await;
        }
        let acknowledged = mem::take(&mut self.calling_back).join_all().await;

        let log = self.judge().await;
        let ended: HashSet<_> = log
            .iter()
            .filter(|it| it.terminal)
            .map(|it| &it.task_id)
            .collect();
        let mut expected = self.expected.iter();
        assert!(expected.all(|it| it.is_answered && ended.contains(&it.task_id)));
        until("the subscriber to see all", async || {
            self.observed.lock().unwrap().len() == log.len()
        })
        .await;

        let checks = self.case.vendor.checks();
        let recovered = log.iter().filter(|it| is_recovered(it)).count();
        println!(
            "{recovered} of {} tasks recovered with {} calls; {} callbacks taken",
            ended.len(),
            checks.len(),
            acknowledged.len(),
        );
        judge_history(
            &log,
            acknowledged,
            mem::take(&mut *self.observed.lock().unwrap()),
        );
    }
}

/// From one attempt of a client whose broker is down to the next.
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// Lets a random time pass, or that between two attempts: it waits for nothing.
async fn has_passed(time: Duration) {
    tokio::time::sleep(time).await;
}

fn lazily(address: SocketAddr) -> Channel {
    Address::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy()
}

/// Reads the log along, and comes back with the last cursor whenever the broker is gone.
async fn follow(address: SocketAddr, observed: Arc<Mutex<Vec<Observed>>>) {
    loop {
        let cursor = {
            let observed = observed.lock().unwrap();
            observed.last().map(|last| last.cursor.clone())
        };
        let start = cursor.map_or_else(request, |cursor| after(&cursor));
        let client = EventServiceClient::new(lazily(address));
        let Ok(mut sub) = Sub::open(client, start).await else {
            has_passed(BETWEEN_TRIES).await; // the broker is down
            continue;
        };
        while let Ok(Some(seen)) = sub.next().await {
            if let Seen::Event(event) = seen {
                observed.lock().unwrap().push(event.observed());
            }
        }
    }
}

/// The limit of a minute holds for less than one, too: a tenth of it may come at once, and what follows comes evenly. A start has
/// nothing to spend.
fn keeps_pace(calls: &[SeenRequest], per_minute_max: usize) {
    const ON_THE_WAY: usize = 4; // calls that began earlier than they came
    let burst = (per_minute_max / 10).max(1);
    let interval = Duration::from_secs(60) / u32::try_from(per_minute_max + 1 - burst).unwrap();
    for (number, first) in calls.iter().enumerate() {
        for (count, last) in (1..).zip(&calls[number..]) {
            let passed = (last.at - first.at).as_nanos() / interval.as_nanos();
            let most = burst + usize::try_from(passed).unwrap() + ON_THE_WAY;
            assert!(count <= most, "{count} calls in {:?}", last.at - first.at);
        }
    }
}
