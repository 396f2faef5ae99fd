//! What any gRPC tool expects of a server: reflection, health, and many concurrent streams.

use blobcast::wire::service::{admin_service_server, event_service_server};
use tokio_stream::{StreamExt, once};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt;

use crate::support::{Server, Sub, completed, matching, of_tasks, tasks, until, within};

const SERVICES: [&str; 2] = [
    event_service_server::SERVICE_NAME,
    admin_service_server::SERVICE_NAME,
];

#[tokio::test]
async fn reflection_v1_lists_both_services_and_describes_their_files() {
    use v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let mut ask = async |message_request| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let mut answers = client
            .server_reflection_info(once(request))
            .await
            .unwrap()
            .into_inner();
        within("the answer", answers.next())
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}")
    };
    let names: Vec<_> = listed
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(names.contains(&name), "{name} is not among {names:?}");
        let described = ask(MessageRequest::FileContainingSymbol(name.into())).await;
        let MessageResponse::FileDescriptorResponse(files) = described else {
            panic!("{described:?}")
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
    // Everything that a message refers to can be asked for, as grpcurl does.
    for file in [
        "blobcast/v1/event.proto",
        "google/protobuf/struct.proto",
        "google/protobuf/timestamp.proto",
    ] {
        let described = ask(MessageRequest::FileByFilename(file.into())).await;
        assert!(
            matches!(described, MessageResponse::FileDescriptorResponse(_)),
            "{file}: {described:?}"
        );
    }
}

#[tokio::test]
async fn reflection_v1alpha_lists_both_services_for_older_tools() {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let mut ask = async |message_request| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message_request),
        };
        let mut answers = client
            .server_reflection_info(once(request))
            .await
            .unwrap()
            .into_inner();
        within("the answer", answers.next())
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let listed = ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}")
    };
    let names: Vec<_> = listed
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in SERVICES {
        assert!(names.contains(&name), "{name} is not among {names:?}");
        let described = ask(MessageRequest::FileContainingSymbol(name.into())).await;
        assert!(
            matches!(described, MessageResponse::FileDescriptorResponse(_)),
            "{name}: {described:?}"
        );
    }
}

#[tokio::test]
async fn health_is_serving_for_the_server_and_each_service_and_unknown_for_others() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in SERVICES.into_iter().chain([""]) {
        let answer = health
            .check(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .unwrap();
        assert_eq!(
            answer.into_inner().status(),
            ServingStatus::Serving,
            "{service}"
        );
    }
    let unknown = health
        .check(HealthCheckRequest {
            service: "blobcast.v2.EventService".into(),
        })
        .await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_watch_of_an_unknown_name_gets_unknown_and_stays_until_the_broker_goes() {
    let mut server = Server::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let unknown = HealthCheckRequest {
        service: "blobcast.v2.EventService".into(),
    };
    let mut watch = health.watch(unknown).await.unwrap().into_inner();
    let first = within("the first answer", watch.next())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(200), watch.next()).await;
    assert!(quiet.is_err(), "it goes on: {quiet:?}");
    server.signal(rustix::process::Signal::TERM);
    let last = within("the end", watch.next()).await;
    assert!(last.is_none(), "{last:?}");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_health_watch_learns_that_the_broker_drains_and_holds_nothing_up() {
    let mut server = Server::start().await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watches = Vec::new();
    for service in SERVICES.into_iter().chain([""]) {
        let watch = health
            .watch(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .unwrap();
        watches.push(watch.into_inner());
    }
    for watch in &mut watches {
        let first = within("the first answer", watch.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
    }
    server.signal(rustix::process::Signal::TERM);
    for watch in &mut watches {
        let second = within("the second answer", watch.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(second.status(), ServingStatus::NotServing);
    }
    assert!(server.ended().await.success());
    assert!(server.log().contains("\"drained\""), "nothing was cut off");
}

#[tokio::test]
async fn calls_during_the_drain_are_answered_as_draining_or_not_at_all() {
    let mut server = Server::start().await;
    // Reads nothing, so that the drain waits for it.
    server.http().post_bulky(0..300, 20_000).await;
    let mut stalled = server.subscribe(crate::support::request()).await;
    stalled.next_event().await;
    let client = server.events().await;
    server.signal(rustix::process::Signal::TERM);
    until("the refusal", async || {
        match client.clone().subscribe(matching(of_tasks(["t1"]))).await {
            Ok(_) => false,
            // Without an ErrorInfo it is the client's own: the listener is closed, and so is the connection.
            Err(status) => {
                let reason = status.get_details_error_info().map(|info| info.reason);
                match (status.code(), reason.as_deref()) {
                    (Code::Unavailable, None | Some("DRAINING")) | (Code::Cancelled, None) => {}
                    other => panic!("{other:?}"),
                }
                true
            }
        }
    })
    .await;
    drop(stalled);
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn one_connection_carries_thousands_of_streams_that_are_opened_at_once() {
    let server = Server::start().await;
    let client = server.events().await;
    // As a service does that lost its connection while it waited for this many tasks.
    let opening: Vec<_> = (0..3_000)
        .map(|number| tokio::spawn(Sub::open(client.clone(), tasks([format!("t{number}")]))))
        .collect();
    let mut open = Vec::new();
    for opening in opening {
        open.push(within("a stream", opening).await.unwrap().unwrap());
    }
    server.http().post(&completed("t2999")).await;
    assert_eq!(open[2_999].next_event().await.task_id, "t2999");
}
