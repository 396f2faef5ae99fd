//! `ExpectTasks`, `CancelExpectations`, `ListExpectations` and their verbs. No vendor answers here: what the broker
//! learns by asking is tested in the files about the reconciler.

use std::time::Duration;

use blobcast::wire::v1::{
    CancelExpectationsRequest, EraseTaskRequest, ExpectTasksRequest, ExpectTasksResponse,
    Expectation, ExpectationInfo, ExpectationState, ExpectedTask, ListExpectationsRequest, TaskKey,
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    permissions::{admin_as, events_as},
    support::{
        CredentialsFile, Options, Server, bulky, completed, free_address, processing, reason,
        refusal, told, violation, with,
    },
};

/// A broker that would ask a vendor, and clients of it.
struct House {
    server: Server,
    /// May see veo and sora.
    billing: String,
    /// May see veo, with its own label only.
    tenant: String,
    admin: String,
    file: CredentialsFile,
}

impl House {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        let billing = file
            .add("client billing --product veo --product sora")
            .await;
        let tenant = file
            .add("client tenant --product veo --label team=ads")
            .await;
        let admin = file.add("client admin --all-products --admin").await;
        let text = std::fs::read_to_string(file.path()).unwrap();
        let keys = r#"
[[vendor_keys]]
name = "main"
key = "rb-main"
products = ["veo", "sora"]

[[vendor_keys]]
name = "second"
key = "rb-second"
products = ["veo"]
"#;
        file.write(&format!("{text}{keys}"));
        let server = options
            .set("credentials_file", file.path().display())
            .set("reconcile.enabled", true)
            // Nobody is there: no test of this file waits for an answer.
            .set("reconcile.base_url", format!("http://{}", free_address()))
            .start()
            .await;
        Self {
            server,
            billing,
            tenant,
            admin,
            file,
        }
    }

    async fn expect(
        &self,
        token: &str,
        expectations: Vec<Expectation>,
    ) -> Result<Vec<ExpectedTask>, Status> {
        let mut client = events_as(&self.server, Some(token)).await;
        let answer = client
            .expect_tasks(ExpectTasksRequest { expectations })
            .await;
        answer.map(|answer| {
            let ExpectTasksResponse { tasks } = answer.into_inner();
            tasks
        })
    }

    async fn cancel(&self, token: &str, tasks: &[(&str, &str)]) -> Result<u32, Status> {
        let key = |&(product, task_id): &(&str, &str)| TaskKey {
            product: product.to_owned(),
            task_id: task_id.to_owned(),
        };
        let request = CancelExpectationsRequest {
            tasks: tasks.iter().map(key).collect(),
        };
        let mut client = events_as(&self.server, Some(token)).await;
        let answer = client.cancel_expectations(request).await;
        answer.map(|answer| answer.into_inner().cancelled_count)
    }

    /// All pages of a listing.
    async fn pages(&self, mut request: ListExpectationsRequest) -> Vec<Vec<ExpectationInfo>> {
        let mut client = admin_as(&self.server, Some(&self.admin)).await;
        let mut pages = Vec::new();
        loop {
            let page = client.list_expectations(request.clone()).await.unwrap();
            let page = page.into_inner();
            pages.push(page.expectations);
            if page.next_page_token.is_empty() {
                return pages;
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn open(&self) -> Vec<ExpectationInfo> {
        self.pages(ListExpectationsRequest::default())
            .await
            .concat()
    }

    async fn open_tasks(&self) -> Vec<String> {
        let open = self.open().await;
        open.into_iter().map(|open| open.task_id).collect()
    }
}

fn veo(task_id: impl ToString) -> Expectation {
    Expectation {
        product: "veo".into(),
        task_id: task_id.to_string(),
        ..Expectation::default()
    }
}

fn within(task_id: &str, seconds: i64) -> Expectation {
    Expectation {
        expect_within: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..veo(task_id)
    }
}

fn labelled(task_id: &str, labels: &[(&str, &str)]) -> Expectation {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Expectation {
        labels: labels.collect(),
        ..veo(task_id)
    }
}

#[tokio::test]
async fn an_expectation_that_was_answered_is_there_after_kill_9() {
    let mut house = House::new().await;
    let (mut expected, mut over) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let tasks = [0, 1, 2].map(|number| format!("{round}-{number}"));
        let answers = house.expect(&house.billing, tasks.iter().map(veo).collect());
        assert!(answers.await.unwrap().iter().all(|task| !task.over));
        if round % 2 == 1 {
            let first = &tasks[0];
            house.server.http().post(&completed(first)).await.event_id();
            over.push(first.clone());
        }
        expected.extend(tasks);
        house.server.crash().await;
        let open = house.open_tasks().await;
        let is_open = |task: &&String| !over.contains(task);
        assert_eq!(
            open,
            expected.iter().filter(is_open).cloned().collect::<Vec<_>>()
        );
    }

    // What a callback has ended is over, also after all of that.
    let answers = house
        .expect(&house.billing, vec![veo(&over[0])])
        .await
        .unwrap();
    assert!(answers[0].over && answers[0].event.is_some());
}

#[tokio::test]
async fn a_task_that_is_expected_again_keeps_its_first_deadline_labels_and_client() {
    let house = House::new().await;
    let first = Expectation {
        vendor_key: "second".into(),
        ..labelled("t1", &[("user", "17")])
    };
    let answers = house.expect(&house.billing, vec![first]).await.unwrap();
    let again = house.expect(&house.tenant, vec![within("t1", 60)]).await;
    assert_eq!(again.unwrap(), answers);

    let open = house.open().await;
    let [info] = &open[..] else {
        panic!("{open:?}")
    };
    assert_eq!(
        (
            &*info.client,
            &*info.vendor_key,
            info.labels["user"].as_str()
        ),
        ("billing", "second", "17")
    );
    assert_eq!(info.expected_by, answers[0].expected_by);
    assert_eq!(info.state(), ExpectationState::Waiting);
}

#[tokio::test]
async fn a_deadline_is_the_products_unless_it_is_named_and_within_10_seconds_and_6_hours() {
    let house = House::new().await;
    let hour = 3_600;
    let tasks = [
        (veo("default"), 12 * 60),
        (within("named", 90), 90),
        (within("short", 9), 10),
        (within("least", 10), 10),
        (within("zero", 0), 10),
        (within("most", 6 * hour), 6 * hour),
        (within("long", 6 * hour + 1), 6 * hour),
        (within("endless", i64::MAX), 6 * hour),
    ];
    let expectations = tasks.iter().map(|(task, _)| task.clone()).collect();
    house.expect(&house.billing, expectations).await.unwrap();
    for (info, (task, seconds)) in house.open().await.iter().zip(&tasks) {
        let [from, to] = [info.expected_at, info.expected_by].map(Option::unwrap);
        assert_eq!(info.task_id, task.task_id);
        assert_eq!(to.seconds - from.seconds, *seconds, "{}", info.task_id);
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_expectation_refuses_the_whole_call() {
    let house = House::new().await;
    let long = "v".repeat(256);
    let labels = |count: usize, value: &str| {
        let labels = (0..count).map(|number| (format!("k{number}"), value.to_owned()));
        Expectation {
            labels: labels.collect(),
            ..veo("t2")
        }
    };
    let other = |product: &str, task_id: &str, vendor_key: &str| Expectation {
        product: product.into(),
        task_id: task_id.into(),
        vendor_key: vendor_key.into(),
        ..Expectation::default()
    };
    for (wrong, field) in [
        (other("", "t2", ""), "product"),
        (other("Veo!", "t2", ""), "product"),
        (other("veo", "", ""), "task_id"),
        (other("veo", "a b", ""), "task_id"),
        (other("veo", "t2", "third"), "vendor_key"),
        (other("sora", "t2", "second"), "vendor_key"),
        (within("t2", -1), "expect_within"),
        (labels(17, ""), "labels"),
        (labels(4, &long), "labels"),
        (labelled("t2", &[("", "v")]), "labels"),
    ] {
        let refused = house
            .expect(&house.billing, vec![veo("t1"), wrong.clone()])
            .await;
        let field = format!("expectations[1].{field}");
        assert_eq!(violation(&refused.unwrap_err()), field, "{wrong:?}");
    }
    for count in [0, 1_001] {
        let refused = house
            .expect(&house.billing, (0..count).map(veo).collect())
            .await;
        assert_eq!(violation(&refused.unwrap_err()), "expectations");
        let tasks: Vec<_> = (0..count).map(|_| ("veo", "t1")).collect();
        let refused = house.cancel(&house.billing, &tasks).await;
        assert_eq!(violation(&refused.unwrap_err()), "tasks");
    }
    // No key is for it, not even for an administrator.
    let refused = house
        .expect(&house.admin, vec![other("kling", "t1", "")])
        .await;
    assert_eq!(violation(&refused.unwrap_err()), "expectations[0].product");
    assert_eq!(house.open_tasks().await, [""; 0]);

    // At the limits all is taken.
    let most = vec![labels(16, ""), labels(3, &long)];
    house.expect(&house.billing, most).await.unwrap();
    let most = (0..1_000).map(|number| veo(format!("m{number}")));
    assert_eq!(
        house
            .expect(&house.billing, most.collect())
            .await
            .unwrap()
            .len(),
        1_000
    );
}

#[tokio::test]
async fn a_client_expects_and_cancels_only_what_it_may_see_with_the_labels_it_is_bound_to() {
    let house = House::new().await;
    let sora = Expectation {
        product: "sora".into(),
        ..veo("t1")
    };
    let denied = house.expect(&house.tenant, vec![veo("t1"), sora]).await;
    let denied = denied.unwrap_err();
    assert_eq!(
        refusal(&denied),
        (Code::PermissionDenied, "PRODUCT_DENIED".into())
    );
    assert_eq!(told(&denied, "product"), "sora");
    let denied = house.cancel(&house.tenant, &[("sora", "t1")]).await;
    assert_eq!(reason(&denied.unwrap_err()), "PRODUCT_DENIED");
    let film = labelled("t1", &[("team", "film")]);
    let denied = house.expect(&house.tenant, vec![film]).await;
    assert_eq!(reason(&denied.unwrap_err()), "LABEL_DENIED");
    assert_eq!(house.open_tasks().await, [""; 0]);

    let own = vec![
        labelled("t1", &[("user", "1")]),
        labelled("t2", &[("team", "ads")]),
    ];
    house.expect(&house.tenant, own).await.unwrap();
    house
        .expect(&house.billing, vec![veo("t3"), veo("t4")])
        .await
        .unwrap();
    let open = house.open().await;
    assert_eq!(open[0].labels.len(), 2);
    assert!(open[..2].iter().all(|open| open.labels["team"] == "ads"));
    assert!(open[2].labels.is_empty());

    let all = [("veo", "t1"), ("veo", "t2"), ("veo", "t3"), ("veo", "none")];
    assert_eq!(house.cancel(&house.billing, &all).await.unwrap(), 1);
    assert_eq!(house.open_tasks().await, ["t1", "t2", "t4"]);
    assert_eq!(house.cancel(&house.tenant, &all).await.unwrap(), 2);
    assert_eq!(
        house.cancel(&house.admin, &[("veo", "t4")]).await.unwrap(),
        1
    );
    assert_eq!(house.open_tasks().await, [""; 0]);

    let listed = admin_as(&house.server, Some(&house.billing))
        .await
        .list_expectations(ListExpectationsRequest::default())
        .await;
    assert_eq!(reason(&listed.unwrap_err()), "ADMIN_DENIED");
}

#[tokio::test]
async fn a_task_that_is_over_is_answered_with_its_latest_end_if_the_client_may_see_that() {
    let house = House::new().await;
    let http = house.server.http();
    http.post(&processing("t1")).await.event_id();
    http.post(&completed("t1")).await.event_id();
    let failed = json!({"status": "failed", "video_url": null});
    let newest = http.post(&with(completed("t1"), failed)).await.event_id();
    http.post(&processing("t2")).await.event_id();

    let answers = house
        .expect(&house.billing, vec![veo("t1"), veo("t2")])
        .await
        .unwrap();
    let event = answers[0].event.as_ref().unwrap();
    assert_eq!(
        (answers[0].over, &event.event_id, event.revision),
        (true, &newest, 3)
    );
    assert!(!event.cursor.is_empty() && event.raw_body.is_empty());
    assert_eq!(answers[0].expected_by, None);
    assert!(!answers[1].over && answers[1].event.is_none() && answers[1].expected_by.is_some());
    assert_eq!(house.open_tasks().await, ["t2"]);

    let hidden = house.expect(&house.tenant, vec![veo("t1")]).await.unwrap();
    assert!(
        hidden[0].over && hidden[0].event.is_none(),
        "it has no label of this client"
    );

    let erased = house
        .server
        .cli("erase veo t1")
        .env("BLOBCAST_TOKEN", &house.admin);
    erased.run().await.good();
    let answers = house.expect(&house.billing, vec![veo("t1")]).await.unwrap();
    assert!(answers[0].over && answers[0].event.is_none());
}

#[tokio::test]
async fn an_answer_has_as_many_events_as_any_client_takes() {
    let house = House::new().await;
    for number in 0..6 {
        let body = bulky(&format!("t{number}"), 900_000);
        house.server.http().post(&body).await.event_id();
    }
    let answers = house.expect(
        &house.billing,
        (0..6).map(|number| veo(format!("t{number}"))).collect(),
    );
    let answers = answers.await.unwrap();
    assert!(answers.iter().all(|answer| answer.over));
    let with_event = answers.iter().map(|answer| answer.event.is_some());
    assert_eq!(
        with_event.collect::<Vec<_>>(),
        [true, true, true, true, false, false]
    );
}

#[tokio::test]
async fn a_client_has_a_fifth_of_all_expectations() {
    let house = House::new().await;
    for call in 0..20 {
        let tasks = (0..1_000).map(|number| veo(format!("{call}-{number}")));
        house.expect(&house.billing, tasks.collect()).await.unwrap();
    }
    let refused = house
        .expect(&house.billing, vec![veo("0-0"), veo("more")])
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(
        refusal(&refused),
        (Code::ResourceExhausted, "EXPECTATION_LIMIT".into())
    );
    assert_eq!(
        (told(&refused, "limit"), told(&refused, "open")),
        ("20000".into(), "20000".into())
    );
    house
        .expect(&house.billing, vec![veo("0-0")])
        .await
        .unwrap();
    house
        .expect(&house.tenant, vec![veo("other")])
        .await
        .unwrap();
    house
        .cancel(&house.billing, &[("veo", "0-0")])
        .await
        .unwrap();
    house
        .expect(&house.billing, vec![veo("more")])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_that_expects_and_cancels_in_a_loop_is_slowed_down_and_no_other() {
    let house = House::new().await;
    let mut calls = 0;
    let refused = loop {
        // The task is expected already from the second call on, which costs as much.
        let tasks = (0..1_000).map(|_| veo("again")).collect();
        match house.expect(&house.billing, tasks).await {
            Ok(_) => calls += 1,
            Err(refused) => break refused,
        }
        assert!(calls < 100, "{calls} calls were taken");
    };
    assert!(calls >= 40, "only {calls} calls were taken");
    assert_eq!(
        refusal(&refused),
        (Code::ResourceExhausted, "OVERLOADED".into())
    );
    let retry = refused.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.unwrap() > Duration::ZERO);
    house
        .expect(&house.tenant, vec![veo("other")])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_listing_has_pages_and_shows_one_product_or_state_if_it_is_named() {
    let house = House::new().await;
    let tasks = (0..600).map(|number| Expectation {
        product: if number % 3 == 0 { "sora" } else { "veo" }.into(),
        ..veo(format!("t{number}"))
    });
    house.expect(&house.billing, tasks.collect()).await.unwrap();

    let sizes = |pages: Vec<Vec<_>>| pages.iter().map(Vec::len).collect::<Vec<_>>();
    let all = ListExpectationsRequest::default();
    assert_eq!(sizes(house.pages(all.clone()).await), [256, 256, 88]);
    let of_sora = ListExpectationsRequest {
        product: "sora".into(),
        page_size: 100,
        ..all.clone()
    };
    let pages = house.pages(of_sora.clone()).await;
    assert!(pages.concat().iter().all(|open| open.product == "sora"));
    assert_eq!(sizes(pages), [100, 100]);
    for (state, count) in [
        (ExpectationState::Waiting, 600),
        (ExpectationState::Overdue, 0),
    ] {
        let request = ListExpectationsRequest {
            state: state.into(),
            ..all.clone()
        };
        assert_eq!(house.pages(request).await.concat().len(), count);
    }

    let mut client = admin_as(&house.server, Some(&house.admin)).await;
    let page = client
        .list_expectations(of_sora)
        .await
        .unwrap()
        .into_inner();
    for wrong in [
        ListExpectationsRequest {
            page_token: page.next_page_token,
            ..all.clone()
        },
        ListExpectationsRequest {
            page_token: "x".into(),
            ..all
        },
    ] {
        let refused = client.list_expectations(wrong).await.unwrap_err();
        assert_eq!(violation(&refused), "page_token");
    }
}

#[tokio::test]
async fn a_broker_that_asks_no_vendor_says_so() {
    let server = Server::start().await;
    let mut client = server.events().await;
    let expectations = vec![veo("t1")];
    let refused = client
        .expect_tasks(ExpectTasksRequest { expectations })
        .await;
    let expected = (Code::FailedPrecondition, "RECONCILE_OFF".to_owned());
    assert_eq!(refusal(&refused.unwrap_err()), expected);
    let told = server.cli("expect veo t1").run().await;
    assert!(told.exited(1).contains("reconcile.enabled"), "{told:?}");
}

#[tokio::test]
async fn what_is_expected_can_be_listed_and_cancelled_when_no_vendor_is_asked_any_more() {
    let mut house = House::new().await;
    house
        .expect(&house.billing, vec![veo("t1"), veo("t2")])
        .await
        .unwrap();
    let text = std::fs::read_to_string(house.file.path()).unwrap();
    let clients = text.split("[[vendor_keys]]").next().unwrap();
    house.file.write(clients);
    house.server.crash().await;

    let refused = house.expect(&house.billing, vec![veo("t3")]).await;
    assert_eq!(reason(&refused.unwrap_err()), "RECONCILE_OFF");
    assert_eq!(house.open_tasks().await, ["t1", "t2"]);
    let cancelled = house.cancel(&house.billing, &[("veo", "t1")]).await;
    assert_eq!(cancelled.unwrap(), 1);
    assert_eq!(house.open_tasks().await, ["t2"]);
}

#[tokio::test]
async fn the_verbs_expect_a_task_and_list_those_that_are_expected() {
    let house = House::new().await;
    let verb = |line: &str| house.server.cli(line).env("BLOBCAST_TOKEN", &house.admin);
    let told = verb("expect veo t1 --label user=17 --within 10m --vendor-key second")
        .run()
        .await;
    assert!(
        told.good().starts_with("veo t1 is expected by "),
        "{told:?}"
    );
    house.server.http().post(&completed("t2")).await.event_id();
    let told = verb("expect veo t2 --output json").run().await;
    told.good();
    let answer = &told.json_lines()[0];
    assert_eq!(
        (&answer["over"], &answer["event"]["task_id"]),
        (&json!(true), &json!("t2"))
    );
    let told = verb("expect veo t3 --label user=1 --label user=2")
        .run()
        .await;
    told.exited(2);

    let told = verb("expectations --product veo --output json").run().await;
    told.good();
    let listed = &told.json_lines()[0];
    assert_eq!(
        (
            &listed["task_id"],
            &listed["labels"]["user"],
            &listed["vendor_key"]
        ),
        (&json!("t1"), &json!("17"), &json!("second"))
    );
    assert_eq!(listed["state"], "EXPECTATION_STATE_WAITING");
    let told = verb("expectations").run().await;
    let table = told.good();
    assert!(
        table.contains("waiting") && table.contains("user=17"),
        "{table}"
    );
    let told = verb("expectations --overdue").run().await;
    assert!(told.stderr.contains("no task is expected"), "{told:?}");
}

#[tokio::test]
async fn the_verb_cancels_what_the_client_may_cancel() {
    let house = House::new().await;
    let all = vec![veo("t1"), veo("t2"), veo("t3")];
    house.expect(&house.billing, all).await.unwrap();
    let verb = |token: &str, line: &str| {
        let line = format!("expectations {line}");
        house.server.cli(&line).env("BLOBCAST_TOKEN", token)
    };

    let told = verb(&house.tenant, "--cancel veo t1").run().await;
    assert!(told.exited(1).contains("another client"), "{told:?}");
    assert_eq!(told.stdout, "0 of 1 cancelled\n");

    let two = "--cancel veo t1 --cancel veo t2";
    let told = verb(&house.billing, two).run().await;
    assert_eq!(told.good(), "2 of 2 cancelled\n");
    assert_eq!(house.open_tasks().await, ["t3"]);

    let told = verb(&house.admin, "--cancel veo t3 --cancel veo t1")
        .run()
        .await;
    told.exited(1);
    assert_eq!(told.stdout, "1 of 2 cancelled\n");

    for wrong in [
        "--cancel veo",
        "--cancel Veo! t1",
        "--overdue --cancel veo t1",
    ] {
        verb(&house.billing, wrong).run().await.exited(2);
    }
}

#[tokio::test]
async fn a_task_that_is_erased_is_not_expected_any_more() {
    let house = House::new().await;
    let all = vec![labelled("t1", &[("user", "erika")]), veo("t2")];
    house.expect(&house.billing, all).await.unwrap();
    let mut admin = admin_as(&house.server, Some(&house.admin)).await;
    let mut erase = async |task_id: &str| {
        let request = EraseTaskRequest {
            product: "veo".into(),
            task_id: task_id.into(),
        };
        let answer = admin.erase_task(request).await;
        answer.map(|answer| answer.into_inner().erased_count)
    };

    assert_eq!(erase("t1").await.unwrap(), 0, "it has no event yet");
    assert_eq!(house.open_tasks().await, ["t2"]);
    assert_eq!(reason(&erase("t1").await.unwrap_err()), "TASK_NOT_FOUND");

    let http = house.server.http();
    http.post(&processing("t2")).await.event_id();
    assert_eq!(erase("t2").await.unwrap(), 1);
    assert_eq!(house.open_tasks().await, [""; 0]);
}

#[tokio::test]
async fn who_lists_expectations_is_in_the_audit_record() {
    let directory = tempfile::tempdir().unwrap();
    let audit = directory.path().join("audit.jsonl");
    let house = House::with(Options::default().set("audit.file", audit.display())).await;
    house
        .expect(&house.billing, vec![veo("t1"), veo("t2")])
        .await
        .unwrap();
    let request = ListExpectationsRequest {
        product: "veo".into(),
        ..ListExpectationsRequest::default()
    };
    assert_eq!(house.pages(request).await.concat().len(), 2);
    crate::support::until("the record", async || {
        let text = std::fs::read_to_string(&audit).unwrap_or_default();
        let record = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|record| record["action"] == "ListExpectations" && !record["count"].is_null());
        record.is_some_and(|record| record["product"] == "veo" && record["count"] == 2)
    })
    .await;
}
