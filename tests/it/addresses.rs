//! The command line with several addresses: brokers that are away, and what is sent to the next one.
//!
//! Streams that go on at another node of a cluster are in `cluster`.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    proxies::proxy,
    support::{Cli, Server, completed, free_address, latest, tasks_of, until},
};

/// Another way to a broker: connections to its address go there until it is cut.
struct Relay {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Relay {
    async fn to(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            // They end with the task.
            let mut connections = JoinSet::new();
            while let Ok((mut from, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut to) = TcpStream::connect(broker).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
        Self {
            address,
            accepting: accepting.abort_handle(),
        }
    }

    /// Ends its connections, and takes no more.
    fn cut(&self) {
        self.accepting.abort();
    }
}

/// An address where each connection is accepted and closed at once.
async fn closing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    address
}

/// An address where connections are neither accepted nor refused, while the second value lives.
async fn silent() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    // The kernel drops what comes when its queue is full.
    while let Ok(connected) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    (address, (listener, waiting))
}

#[tokio::test]
async fn an_address_that_stays_silent_is_left_after_a_while() {
    let (server, (silent, _queue)) = (Server::start().await, silent().await);
    server.http().post(&completed("t1")).await.event_id();
    for line in [
        "events --output json",
        "listen --from earliest --count 1 --output json",
    ] {
        let ran = Cli::new(&format!("{line} --grpc-url {silent},{}", server.grpc))
            .run()
            .await;
        assert_eq!(ran.each("task_id"), ["t1"]);
        assert!(
            ran.stderr
                .starts_with(&format!("cannot reach http://{silent}: ")),
            "{line}: {ran:?}"
        );
    }
    let erase = format!("erase veo t1 --grpc-url {silent},{}", server.grpc);
    assert!(
        Cli::new(&erase)
            .run()
            .await
            .good()
            .starts_with("1 event erased")
    );
}

#[tokio::test]
async fn every_verb_goes_on_at_the_next_address_when_one_is_away() {
    let (server, away) = (Server::start().await, free_address());
    server.http().post(&completed("t1")).await.event_id();
    let nonsense = server.http().post_to("/webhook/veo", "nonsense").await;
    assert_eq!(nonsense.status, 202);
    for (line, printed) in [
        ("events --output json", "\"t1\""),
        ("get t1 --output json", "\"t1\""),
        ("wait t1 --product veo", "http"),
        ("listen --from earliest --count 1 --output json", "\"t1\""),
        ("backup -", "t1"),
        ("quarantine list", "/webhook/veo"),
        ("quarantine discard 1", "1 of 1 discarded"),
        ("erase veo t1", "1 event erased"),
        ("events", ""),
    ] {
        let ran = Cli::new(&format!("{line} --grpc-url {away},{}", server.grpc))
            .run()
            .await;
        assert!(ran.good().contains(printed), "{line}: {ran:?}");
        let moved = format!("going on at http://{}\n", server.grpc);
        assert!(
            ran.stderr
                .starts_with(&format!("cannot reach http://{away}: "))
                && ran.stderr.contains(&moved),
            "{line}: {ran:?}"
        );
    }
}

#[tokio::test]
async fn addresses_are_given_by_flags_or_by_the_variable_with_commas() {
    let (server, away) = (Server::start().await, free_address());
    server.http().post(&completed("t1")).await.event_id();
    let by_flags = format!(
        "events --output json --grpc-url {away} --grpc-url {}",
        server.grpc
    );
    assert_eq!(Cli::new(&by_flags).run().await.each("task_id"), ["t1"]);
    let by_variable = Cli::new("events --output json").env(
        "BLOBCAST_GRPC_URL",
        format!("{away},http://{}", server.grpc),
    );
    assert_eq!(by_variable.run().await.each("task_id"), ["t1"]);
}

#[tokio::test]
async fn the_first_address_is_asked_while_it_answers() {
    let (first, second) = (Server::start().await, Server::start().await);
    first.http().post(&completed("t1")).await.event_id();
    second.http().post(&completed("t2")).await.event_id();
    let ran = Cli::new(&format!(
        "events --output json --grpc-url {},{}",
        first.grpc, second.grpc
    ))
    .run()
    .await;
    assert_eq!(ran.each("task_id"), ["t1"]);
    assert_eq!(ran.stderr, "");
}

#[tokio::test]
async fn healthcheck_asks_each_address_and_names_those_that_are_not_ready() {
    let (first, second) = (Server::start().await, Server::start().await);
    let both = format!("{},http://{}", first.admin, second.admin);
    let ran = Cli::new(&format!("healthcheck --admin-url {both}"))
        .run()
        .await;
    let ready = |server: &Server| format!("http://{}  ready\n", server.admin);
    assert_eq!(ran.good(), ready(&first) + &ready(&second));

    let (away, (silent, _queue)) = (free_address(), silent().await);
    let all = format!("{},{away},{silent}", first.admin);
    let ran = Cli::new(&format!("healthcheck --timeout 2s --admin-url {all}"))
        .env("BLOBCAST_ADMIN_URL", "http://nowhere")
        .run()
        .await;
    ran.exited(1);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{ran:?}");
    assert_eq!(format!("{}\n", lines[0]), ready(&first));
    assert!(
        lines[1].starts_with(&format!("http://{away}  cannot be asked: ")),
        "{ran:?}"
    );
    assert_eq!(
        lines[2],
        format!("http://{silent}  cannot be asked: no answer within 2s")
    );
}

#[tokio::test]
async fn trigger_goes_on_at_the_next_address_as_a_balancer_would() {
    let (server, away, gateway) = (Server::start().await, free_address(), proxy(503).await);
    let all = format!("{away},{gateway},{}", server.ingest);
    let ran = Cli::new(&format!("trigger --count 3 --ingest-url {all}"))
        .run()
        .await;
    assert_eq!(ran.good().lines().count(), 3);
    assert_eq!(server.log_of_events().await.len(), 3);
    let told: Vec<_> = ran.stderr.lines().collect();
    assert!(
        told.len() == 2
            && told[0].starts_with(&format!("{away}: "))
            && told[1].starts_with(&format!("{gateway}: 503 ")),
        "the next callbacks go where one was taken: {ran:?}"
    );

    // An answer about the callback is the last word, and a list may come by the variable.
    let ran = Cli::new("trigger --shape not-json")
        .env(
            "BLOBCAST_INGEST_URL",
            format!("http://{},{away}", server.ingest),
        )
        .run()
        .await;
    assert!(ran.good().contains(" 202 "), "{ran:?}");
    assert_eq!(ran.stderr, "");

    let ran = Cli::new(&format!("trigger --ingest-url {away},{gateway}"))
        .run()
        .await;
    ran.exited(1);
    assert!(ran.stdout.contains(" 503 "), "the last answer: {ran:?}");
}

#[tokio::test]
async fn when_all_addresses_are_away_each_is_named_with_its_problem() {
    let (first, second, gateway) = (free_address(), free_address(), proxy(502).await);
    let all = format!("{first},{second},{gateway}");
    let problems = [
        format!("cannot reach http://{first}: "),
        format!("; cannot reach http://{second}: "),
        format!("; http://{gateway}: the proxy (nginx/1.22.1) answered 502 Bad Gateway; "),
    ];
    for line in ["get t1", "events", "quarantine list", "erase veo t1"] {
        let ran = Cli::new(&format!("{line} --grpc-url {all}")).run().await;
        let said = ran.exited(1);
        if line == "erase veo t1" {
            // The proxy may have passed it on, so it is the last word.
            assert!(said.contains("answered 502 Bad Gateway"), "{said}");
            continue;
        }
        assert!(
            said.starts_with(&format!("error: no broker took the call: {}", problems[0])),
            "{line}: {said}"
        );
        for problem in &problems {
            assert!(said.contains(problem), "{line}: {said}");
        }
        let step = "is `blobcast serve` running? use --grpc-url";
        assert_eq!(said.matches(step).count(), 1, "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }

    let listen = Cli::new(&format!("listen --grpc-url {all}")).start();
    for problem in &problems {
        listen.says(problem).await;
    }
    listen.says("; connecting again in ").await;
    let ran = Cli::new(&format!(
        "wait t1 --timeout 10ms --grpc-url {first},{second}"
    ))
    .run()
    .await;
    let last = ran.exited(1).lines().last().unwrap();
    assert!(
        last.starts_with("error: no broker has answered within 10ms: ")
            && problems[..2].iter().all(|problem| last.contains(problem)),
        "{last}"
    );
}

#[tokio::test]
async fn an_error_that_another_address_would_not_mend_ends_a_command_and_names_the_broker() {
    let (first, second) = (Server::start().await, Server::start().await);
    second.http().post(&completed("t1")).await.event_id();
    let ran = Cli::new(&format!("get t1 --grpc-url {},{}", first.grpc, second.grpc))
        .run()
        .await;
    let said = ran.exited(1);
    assert!(
        said.starts_with(&format!(
            "error: http://{}: NOT_FOUND TASK_NOT_FOUND: ",
            first.grpc
        )),
        "{said}"
    );
}

#[tokio::test]
async fn a_call_that_changes_something_is_not_sent_again_where_it_may_have_arrived() {
    let (server, closing) = (Server::start().await, closing().await);
    server.http().post(&completed("t1")).await.event_id();
    let both = format!("--grpc-url {closing},{}", server.grpc);
    let ran = Cli::new(&format!("erase veo t1 {both}")).run().await;
    assert!(
        ran.exited(1).contains(&format!("http://{closing}")),
        "{ran:?}"
    );
    assert_eq!(tasks_of(&server.log_of_events().await), ["t1"]);
    // A question may be asked twice.
    let ran = Cli::new(&format!("events --output json {both}"))
        .run()
        .await;
    assert_eq!(ran.each("task_id"), ["t1"]);
}

#[tokio::test]
async fn listen_goes_on_at_the_next_address_and_neither_loses_nor_repeats_an_event() {
    let server = Server::start().await;
    let relays = [
        Relay::to(server.grpc).await,
        Relay::to(server.grpc).await,
        Relay::to(server.grpc).await,
    ];
    let all = relays.each_ref().map(|relay| relay.address.to_string());
    let listen = Cli::new(&format!(
        "listen --from earliest --output json --grpc-url {}",
        all.join(",")
    ))
    .start();

    let mut posted = Vec::new();
    for (round, relay) in relays.iter().enumerate() {
        for number in 0..5 {
            let task = format!("t{round}-{number}");
            server.http().post(&completed(&task)).await.event_id();
            posted.push(task);
        }
        listen.prints_lines(posted.len()).await;
        if round < 2 {
            relay.cut();
            let next = format!(" s at http://{} from ", all[round + 1]);
            listen.says(&next).await;
        }
    }
    let printed: Vec<_> = listen
        .json_lines()
        .iter()
        .map(|event| event["task_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(printed, posted);
}

#[tokio::test]
async fn listen_turns_to_another_broker_at_once_when_one_is_restarted() {
    let (mut first, second) = (Server::start().await, Server::start().await);
    let listen = Cli::new(&format!(
        "listen --task t1 --output json --grpc-url {},{}",
        first.grpc, second.grpc
    ))
    .start();
    listen.says("caught up").await;
    first.terminate().await;
    // Alone it would be given the 2 s that it asks for.
    listen
        .says("the broker is going away; connecting again in 0.")
        .await;
    second.http().post(&completed("t1")).await.event_id();
    let refused = format!("http://{}: FAILED_PRECONDITION EPOCH_MISMATCH", second.grpc);
    let ran = listen.ended().await;
    assert!(ran.exited(1).contains(&refused), "{ran:?}");
}

#[tokio::test]
async fn wait_goes_on_at_the_next_address() {
    let server = Server::start().await;
    let (first, second) = (Relay::to(server.grpc).await, Relay::to(server.grpc).await);
    let wait = Cli::new(&format!(
        "wait t1 --product veo --grpc-url {},{}",
        first.address, second.address
    ))
    .start();
    until("the wait", async || {
        !server.subscriptions().await.is_empty()
    })
    .await;
    first.cut();
    wait.says(&format!("going on at http://{}", second.address))
        .await;
    server.http().post(&completed("t1")).await.event_id();
    assert!(wait.ended().await.good().starts_with("http"));
}

#[tokio::test]
async fn subscriptions_of_each_address_are_listed_and_ended() {
    let (first, second, away) = (Server::start().await, Server::start().await, free_address());
    let mut subs = Vec::new();
    for server in [&first, &second] {
        subs.push(server.subscribe(latest()).await);
    }
    let both = format!("--grpc-url {},{}", first.grpc, second.grpc);
    let listed = Cli::new(&format!("subscriptions --output json {both}"))
        .run()
        .await
        .each("subscription_id");
    assert_eq!(listed.len(), 2);

    let all = format!("--grpc-url {},{away},{}", first.grpc, second.grpc);
    let ran = Cli::new(&format!("subscriptions --output json {all}"))
        .run()
        .await;
    let last = ran.exited(1);
    assert!(
        last.starts_with(&format!(
            "error: not every broker has answered: cannot reach http://{away}: "
        )),
        "{last}"
    );
    assert_eq!(ran.stdout.lines().count(), 2, "what there is is listed");

    // Ids of different brokers may be alike: the first one that has it ends it.
    let ids = listed.iter().map(|id| format!("--end {id} "));
    let ids: String = ids.collect();
    let ran = Cli::new(&format!("subscriptions {ids}{both}")).run().await;
    ran.good();
    let left = Cli::new(&format!("subscriptions --output json {both}"))
        .run()
        .await;
    assert_eq!(left.good(), "");
}
