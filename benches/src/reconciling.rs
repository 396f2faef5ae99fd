//! A broker that reconciles: its settings and clients, what they expect of it, and a vendor that knows none of their tasks.

use std::{
    fs::OpenOptions, io::Write as _, net::SocketAddr, ops::Range,
    os::unix::fs::OpenOptionsExt as _, process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    bench::{Bench, PRODUCT},
    harness::{self, Process, Says},
    load::task_id,
    subscribers,
    wire::{ExpectTasksRequest, ExpectTasksResponse, Expectation},
};

/// Tasks that one client may have open: a fifth of what a broker takes in all.
const PER_CLIENT: u64 = 20_000;
/// Tasks that one call names at most.
const PER_CALL: u64 = 1_000;

const EXPECT: &str = "/blobcast.v1.EventService/ExpectTasks";
const LIST: &str = "/blobcast.v1.AdminService/ListExpectations";

/// `ListExpectationsRequest`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct ListRequest {
    #[prost(string, tag = "2")]
    page_token: String,
}

/// `ListExpectationsResponse`; the expectations are counted and not decoded.
#[derive(Clone, PartialEq, prost::Message)]
struct ListResponse {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    expectations: Vec<Bytes>,
    #[prost(string, tag = "2")]
    next_page_token: String,
}

/// See the file's description. The vendor ends when this is dropped.
#[derive(Debug)]
pub struct Reconciling {
    settings: Vec<(&'static str, String)>,
    /// The tokens of those that expect.
    clients: Vec<String>,
    /// The token of the client that lists what is expected.
    admin: String,
    _vendor: Process,
    _credentials: TempDir,
}

impl Reconciling {
    /// Starts a vendor, and makes as many clients as may expect so many tasks.
    pub async fn new(bench: &Bench, tasks: u64) -> Result<Self> {
        let directory = harness::directory(&bench.target)?;
        let mut lines = "[clients]\n".to_owned();
        let mut client = |name: &str, rights: &[&str]| {
            let (line, token) = new_client(bench, name, rights)?;
            lines = format!("{lines}{line}\n");
            anyhow::Ok(token)
        };
        let clients = (0..tasks.div_ceil(PER_CLIENT))
            .map(|number| client(&format!("bench-{number}"), &[]))
            .collect::<Result<_>>()?;
        let admin = client("bench-admin", &["--admin"])?;

        let path = directory.path().join("credentials.toml");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let vendor_key = "[[vendor_keys]]\nname = \"main\"\nkey = \"any\"\n";
        file.write_all(format!("{lines}{vendor_key}").as_bytes())?;

        let (vendor, url) = start_vendor(bench).await?;
        let settings = vec![
            ("credentials_file", path.display().to_string()),
            ("reconcile.enabled", "true".to_owned()),
            ("reconcile.base_url", url),
        ];
        Ok(Self {
            settings,
            clients,
            admin,
            _vendor: vendor,
            _credentials: directory,
        })
    }

    /// The settings of the broker, and further ones.
    pub fn settings<'a>(&'a self, further: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let settings = self.settings.iter();
        settings
            .map(|(key, value)| (*key, value.as_str()))
            .chain(further.iter().copied())
            .collect()
    }

    /// Has tasks of these numbers expected, with two labels each.
    pub async fn expect(&self, grpc: SocketAddr, tasks: Range<u64>) -> Result<()> {
        for (client, tasks) in self.clients.iter().zip(parts(tasks, PER_CLIENT)) {
            let channel = subscribers::connect(grpc).await?;
            for numbers in parts(tasks, PER_CALL) {
                let request = ExpectTasksRequest {
                    expectations: numbers.map(expectation).collect(),
                };
                let answer: ExpectTasksResponse = call(&channel, EXPECT, client, request).await?;
                ensure!(
                    answer.tasks.iter().all(|task| !task.over),
                    "a task is over before it has begun"
                );
            }
        }
        Ok(())
    }

    /// How many are open.
    pub async fn count_open(&self, grpc: SocketAddr) -> Result<u64> {
        let channel = subscribers::connect(grpc).await?;
        let (mut open, mut request) = (0, ListRequest::default());
        loop {
            let page: ListResponse = call(&channel, LIST, &self.admin, request).await?;
            open += page.expectations.len() as u64;
            if page.next_page_token.is_empty() {
                return Ok(open);
            }
            request = ListRequest {
                page_token: page.next_page_token,
            };
        }
    }
}

/// A range in parts of at most so many.
fn parts(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let firsts = (range.start..range.end).step_by(most as usize);
    firsts.map(move |first| first..range.end.min(first + most))
}

fn expectation(number: u64) -> Expectation {
    let labels = [
        ("user", format!("customer-{number}")),
        ("team", "advertising".to_owned()),
    ];
    Expectation {
        product: PRODUCT.to_owned(),
        task_id: task_id(number),
        labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
        ..Expectation::default()
    }
}

/// The line of a new client for the credentials file, and its token.
fn new_client(bench: &Bench, name: &str, rights: &[&str]) -> Result<(String, String)> {
    let output = Command::new(&bench.server)
        .args(["token", "new", "client", name, "--all-products"])
        .args(["--output", "json"])
        .args(rights)
        .output()?;
    ensure!(output.status.success(), "token new: {}", output.status);
    let made: Value = serde_json::from_slice(&output.stdout)?;
    let text = |key: &str| made[key].as_str().map(str::to_owned).context("token new");
    Ok((text("line")?, text("secret")?))
}

/// The simulated vendor. It knows no task, so it answers 404, and shows empty lists.
async fn start_vendor(bench: &Bench) -> Result<(Process, String)> {
    let mut command = Command::new(&bench.server);
    command.args(["vendor", "--listen", "127.0.0.1:0", "--output", "json"]);
    let mut process = Process::start(command, Says::Stdout)?;
    let url = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["url"].as_str().map(str::to_owned)
    };
    let url = process.hears(url).await.context("the simulated vendor")?;
    Ok((process, url))
}

async fn call<Q, A>(channel: &Channel, path: &'static str, token: &str, message: Q) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut request = Request::new(message);
    let authorization = format!("Bearer {token}").parse()?;
    request
        .metadata_mut()
        .insert("authorization", authorization);
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = client
        .unary(request, PathAndQuery::from_static(path), codec)
        .await?;
    Ok(answer.into_inner())
}
