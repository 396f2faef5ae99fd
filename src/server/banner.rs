//! What a person sees after the start: where everything is, for whom, and two lines to paste. Pure.

use super::Addresses;
use crate::{config::Config, store::Store};

pub(super) fn text(config: &Config, addresses: &Addresses, store: &Store) -> String {
    let Addresses { ingest, grpc, admin } = addresses;
    let base = config.public_url.clone().unwrap_or_else(|| format!("http://{ingest}"));
    let events = store.summary().event_count;
    let note = if config.public_url.is_some() {
        String::new()
    } else {
        "\n               (RunBlob wants HTTPS: put a proxy in front, and give its address by --public-url)".to_owned()
    };
    let body =
        r#"{"generation_id":"demo-1","status":"completed","video_url":"https://cdn.runblob.io/videos/demo-1.mp4"}"#;
    format!(
        "blobcast {version} is ready

  callbacks    http://{ingest}/webhook/PRODUCT   for RunBlob: the only public address
  gRPC         {grpc}   for your services: blobcast.v1.EventService
  admin        http://{admin}   for operators: /readyz /metrics
  data         {data}   log {epoch}, {events} events

callback_url   {base}/webhook/veo{note}

Send a callback:
  curl -H 'content-type: application/json' -d '{body}' http://{ingest}/webhook/veo
See it:
  grpcurl -plaintext -d '{{\"filter\":{{\"task_ids\":[\"demo-1\"]}}}}' {grpc} blobcast.v1.EventService/Subscribe
",
        version = env!("CARGO_PKG_VERSION"),
        data = config.data_dir.display(),
        epoch = store.epoch(),
    )
}
