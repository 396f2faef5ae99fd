//! A fake OpenTelemetry collector: speaks OTLP over gRPC, records the exports, and can refuse or
//! hang.

use std::{
    collections::VecDeque,
    future::pending,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::{ANY_PORT, Issued, Options, until};
pub use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest as Export,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    resource::v1::Resource,
};

/// How it answers one export.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    Take,
    /// Accepts all spans but this many.
    TakeAllBut(i64),
    Refuse,
    Hang,
}

/// A running collector.
#[derive(Clone, Debug)]
pub struct Collector {
    pub address: SocketAddr,
    exports: Arc<Mutex<Vec<Export>>>,
    /// The last one applies to all further exports.
    manners: Arc<Mutex<VecDeque<Manner>>>,
}

impl Collector {
    /// A collector that accepts everything.
    pub async fn start() -> Self {
        Self::that(&[Manner::Take]).await
    }

    /// A collector that answers exports in these manners, one after the other; the last one applies
    /// to all further exports.
    pub async fn that(manners: &[Manner]) -> Self {
        Self::serve(manners, Server::builder()).await
    }

    /// A collector with TLS.
    pub async fn secured(issued: &Issued) -> Self {
        let read = |path| std::fs::read(path).unwrap();
        let identity = Identity::from_pem(read(&issued.certificate), read(&issued.key));
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap();
        Self::serve(&[Manner::Take], server).await
    }

    async fn serve(manners: &[Manner], mut server: Server) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let address = listener.local_addr().unwrap();
        let manners = Arc::new(Mutex::new(manners.iter().copied().collect()));
        let collector = Self {
            address,
            exports: Arc::default(),
            manners,
        };
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(
            server
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        collector
    }

    /// Options of a broker that sends its traces to this collector.
    pub fn options(&self) -> Options {
        Options::default().set("traces.otlp_endpoint", format!("http://{}", self.address))
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        let exports = self.exports.lock().unwrap();
        let resources = exports.iter().flat_map(|export| &export.resource_spans);
        resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }

    /// Number of exports so far.
    pub fn exports(&self) -> usize {
        self.exports.lock().unwrap().len()
    }

    /// The resource of the first export.
    pub fn resource(&self) -> Resource {
        self.exports.lock().unwrap()[0].resource_spans[0]
            .resource
            .clone()
            .unwrap()
    }

    /// Waits for `count` spans of a name; returns all of that name by then.
    pub async fn named(&self, name: &str, count: usize) -> Vec<Span> {
        let named = || {
            self.spans()
                .into_iter()
                .filter(|span| span.name == name)
                .collect::<Vec<_>>()
        };
        until(&format!("{count} spans named {name}"), || {
            std::future::ready(named().len() >= count)
        })
        .await;
        named()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.exports.lock().unwrap().push(request.into_inner());
        let manner = {
            let mut manners = self.manners.lock().unwrap();
            if manners.len() > 1 {
                manners.pop_front()
            } else {
                manners.front().copied()
            }
        };

        let partial_success = match manner.unwrap() {
            Manner::Take => None,
            Manner::TakeAllBut(rejected_spans) => Some(ExportTracePartialSuccess {
                rejected_spans,
                error_message: "too many".into(),
            }),
            Manner::Refuse => return Err(Status::permission_denied("not from you")),
            Manner::Hang => pending().await,
        };

        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

/// The value of an attribute as text; empty if it is missing.
pub fn attribute(span: &Span, key: &str) -> String {
    let value = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => other.map(|value| format!("{value:?}")).unwrap_or_default(),
    }
}

/// An id in hexadecimal.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
