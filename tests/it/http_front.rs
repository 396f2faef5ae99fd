//! The public HTTP listener with the vendor, with unauthenticated clients, and under overload: the
//! answer, and what is stored.

mod answers;
mod bad_input;
mod encodings;
mod limits;
mod near_misses;
mod overload;
mod raw;
mod refusals;

use blobcast::wire::v1::{ListQuarantineRequest, QuarantinedCallback};

use crate::support::Server;

/// How many requests have been answered in this way.
async fn counted(server: &Server, outcome: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_callbacks_total{{outcome=\"{outcome}\"}}"
        ))
        .await
}

/// The quarantine, oldest first, with bodies.
async fn quarantine(server: &Server) -> Vec<QuarantinedCallback> {
    let mut client = server.admin_service().await;
    let (mut callbacks, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListQuarantineRequest {
            page_token,
            include_body: true,
            ..Default::default()
        };
        let page = client.list_quarantine(request).await.unwrap().into_inner();
        callbacks.extend(page.callbacks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return callbacks;
        }
    }
}

/// Panics if anything is in the log or in quarantine.
async fn nothing_is_kept(server: &Server) {
    assert_eq!(server.log_of_events().await, []);
    assert_eq!(quarantine(server).await, []);
}
