//! Calls over plain HTTP/2: requests that a gRPC library would not send, and answers that it would
//! hide.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tonic::Status;

use crate::support::{Server, within};

/// One connection.
#[derive(Clone)]
pub(super) struct Calls {
    authority: String,
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Calls {
    pub(super) async fn connect(server: &Server) -> Self {
        let stream = within("a connection", TcpStream::connect(server.grpc))
            .await
            .unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self {
            authority: server.grpc.to_string(),
            sender,
        }
    }

    /// The answer's HTTP status, and what became of the call if it was taken for one.
    pub(super) async fn call(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, Option<Status>) {
        let body = body.into();
        let mut request = Request::post(format!("http://{}{path}", self.authority));
        for (name, value) in self
            .headers(&body)
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
        {
            request = request.header(name, value);
        }
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).unwrap();
        let answer = within("an answer", self.sender.send_request(request))
            .await
            .unwrap();
        let status = answer.status().as_u16();
        if let Some(refusal) = Status::from_header_map(answer.headers()) {
            return (status, Some(refusal));
        }
        let body = within("the answer's end", answer.into_body().collect())
            .await
            .unwrap();
        (status, body.trailers().and_then(Status::from_header_map))
    }

    /// The answer to a request with these headers and no others: its HTTP status, and why it is refused.
    pub(super) async fn post(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let (status, message, _) = self.post_for_body(path, headers).await;
        (status, message)
    }

    /// The same, with the body, which says it once more.
    pub(super) async fn post_for_body(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String, String) {
        let mut request = Request::post(format!("http://{}{path}", self.authority));
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(Bytes::from_static(&[0; 5])))
            .unwrap();
        let answer = within("an answer", self.sender.send_request(request))
            .await
            .unwrap();
        let status = answer.status().as_u16();
        let message = answer
            .headers()
            .get("x-blobcast-message")
            .map(|value| value.to_str().unwrap().to_owned());
        let body = within("its body", answer.into_body().collect())
            .await
            .unwrap()
            .to_bytes();
        (
            status,
            message.unwrap_or_default(),
            String::from_utf8_lossy(&body).into_owned(),
        )
    }

    /// How large HTTP/2 says that the headers of such a call are, without those of the caller's own.
    pub(super) fn header_list_bytes(&self, path: &str, body: &Bytes) -> usize {
        let pseudo = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", &self.authority),
            (":path", path),
        ];
        let pseudo = pseudo.map(|(name, value)| (name, value.to_owned()));
        pseudo
            .iter()
            .chain(&self.headers(body))
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum()
    }

    fn headers(&self, body: &Bytes) -> [(&'static str, String); 3] {
        let length = body.len().to_string();
        [
            ("content-type", "application/grpc".into()),
            ("te", "trailers".into()),
            ("content-length", length),
        ]
    }
}

/// A request as it is framed.
pub(super) fn framed(request: &impl Message) -> Bytes {
    let request = request.encode_to_vec();
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &request].concat().into()
}
