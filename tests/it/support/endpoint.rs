//! An HTTP endpoint that records the callbacks and forwarded events that are posted to it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri},
};

use super::free_address;

/// A recorded request: target, headers by name, and body.
pub type Posted = (String, BTreeMap<String, String>, String);

/// An endpoint with prepared answers.
#[derive(Clone, Default)]
pub struct Endpoint {
    pub seen: Arc<Mutex<Vec<Posted>>>,
    answers: Arc<Mutex<Vec<(u16, HeaderMap)>>>,
}

impl Endpoint {
    /// Answers with these statuses, and with 204 after them.
    pub fn answering(answers: &[u16]) -> Self {
        Self::answering_with(
            &answers
                .iter()
                .map(|&status| (status, None))
                .collect::<Vec<_>>(),
        )
    }

    /// Like [`Endpoint::answering`], with an optional header each.
    pub fn answering_with(answers: &[(u16, Option<(&'static str, &str)>)]) -> Self {
        let header = |&(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), value.parse().unwrap())
        };
        let answer =
            |(status, with): &(u16, Option<_>)| (*status, with.iter().map(header).collect());
        let answers = Arc::new(Mutex::new(answers.iter().rev().map(answer).collect()));
        Self {
            answers,
            ..Self::default()
        }
    }

    pub async fn open(&self, address: SocketAddr) {
        let endpoint = self.clone();
        let take = move |uri: Uri, headers: HeaderMap, body: String| async move {
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect();

            endpoint
                .seen
                .lock()
                .unwrap()
                .push((uri.to_string(), headers, body));

            let (status, headers) = endpoint
                .answers
                .lock()
                .unwrap()
                .pop()
                .unwrap_or((204, HeaderMap::new()));
            (StatusCode::from_u16(status).unwrap(), headers)
        };

        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(take)).await });
    }

    /// Opens it on a free port.
    pub async fn opened(self) -> (Self, SocketAddr) {
        let address = free_address();
        self.open(address).await;
        (self, address)
    }

    pub fn bodies(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, _, body)| body.clone())
            .collect()
    }

    pub fn targets(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(target, _, _)| target.clone())
            .collect()
    }

    /// The value of a header in each request; empty if it is missing.
    pub fn header(&self, name: &str) -> Vec<String> {
        let value =
            |headers: &BTreeMap<String, String>| headers.get(name).cloned().unwrap_or_default();
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(_, headers, _)| value(headers))
            .collect()
    }
}
