//! `cluster status`: the cluster as one of its nodes sees it, by `GetLogInfo`.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::super::{
    client::GrpcArgs,
    output::{self, Format, note},
};
use crate::wire::v1;

#[derive(Args, Debug)]
#[command(after_help = "\
Each node tells what it sees itself: if two of them cannot reach each other, ask both.

  WRITES   the last frame is its, so it writes the next one
  READY    it takes callbacks; away: it has not shown itself for 7 s or more, and the rest is as it was
  PLACE    of its newest event
  BEHIND   messages of the stream that it has not seen
  DIFFERS  what differs from the node that answers and must not: chain, another log;
           stream, its log was read from another stream; keys of the configuration; credentials

A node that is away is shown for an hour.

Exit codes: 0 it is shown, whatever it says; 1 the broker is alone, or cannot be asked; 2 usage.")]
pub(super) struct StatusArgs {
    /// How to print it: for people, or as one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.grpc.events()?;
    let answer = client.get_log_info(v1::GetLogInfoRequest::default()).await;
    let info = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();
    let Some(cluster) = info.cluster else {
        anyhow::bail!(
            "this broker is alone, and has no cluster; ask a node of one with --grpc-url, or start nodes with `blobcast serve \
             --cluster` (docs/cluster.md)"
        );
    };

    match args.output {
        Format::Json => output::emit_json(&as_json(&cluster))?,
        Format::Pretty => print(&cluster)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(cluster: &v1::ClusterInfo) -> anyhow::Result<()> {
    output::emit_lines(&summary(cluster))?;
    if !cluster.nodes.is_empty() {
        let header = [
            "NODE", "VERSION", "WRITES", "READY", "PLACE", "BEHIND", "DIFFERS",
        ];
        let nodes = cluster.nodes.iter().enumerate();
        let rows: Vec<_> = nodes
            .map(|(index, node)| row(cluster, node, index == 0))
            .collect();
        output::emit(b"\n")?;
        output::emit_table(header, &rows)?;
    }
    hints(cluster).iter().for_each(|hint| note(hint));
    Ok(())
}

/// Lines about the cluster and the node that answers.
fn summary(cluster: &v1::ClusterInfo) -> String {
    let ready = match (cluster.ready, cluster.problem.as_str()) {
        (true, _) => "ready".to_owned(),
        (false, "") => "not ready".to_owned(),
        (false, problem) => format!("not ready: {problem}"),
    };
    let writer = match cluster.writer.as_str() {
        "" => "not known yet: this node has applied nothing since its start",
        writer => writer,
    };
    let messages = match cluster.stream_lag {
        1 => "1 message behind".to_owned(),
        lag => format!("{lag} messages behind"),
    };
    let room = match cluster.stream_bytes_max {
        0 => String::new(),
        max => {
            let percent = u128::from(cluster.stream_bytes) * 100 / u128::from(max);
            let bytes = cluster.stream_bytes;
            format!("; {bytes} of {max} bytes are used, {percent} %")
        }
    };
    format!(
        "cluster  {}\nnode     {}, {ready}\nwriter   {writer}\nstream   {messages}{room}\n",
        cluster.name, cluster.node
    )
}

fn row(cluster: &v1::ClusterInfo, node: &v1::ClusterNode, answers: bool) -> [String; 7] {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "?".to_owned());
    let yes = |is_so| if is_so { "yes" } else { "no" }.to_owned();
    [
        if answers {
            format!("{} (this one)", node.name)
        } else {
            node.name.clone()
        },
        node.version.clone(),
        yes(!cluster.writer.is_empty() && node.name == cluster.writer),
        match away(node) {
            Some(_) => "away".to_owned(),
            None => or_unknown(node.ready.map(yes)),
        },
        or_unknown(node.place.map(|place| place.to_string())),
        node.stream_lag.to_string(),
        match node.mismatches.as_slice() {
            [] => "-".to_owned(),
            mismatches => mismatches.join(","),
        },
    ]
}

/// For how long a node has not shown itself, if it is away.
fn away(node: &v1::ClusterNode) -> Option<Duration> {
    let silent = node.away_for.as_ref()?;
    Some(Duration::from_secs(silent.seconds.unsigned_abs()))
}

/// What to do about what is wrong.
fn hints(cluster: &v1::ClusterInfo) -> Vec<String> {
    let mut hints = Vec::new();
    if cluster.hole {
        hints.push(format!(
            "{} follows the stream no more, and serves what it has: keep its data directory; docs/cluster.md says what to do",
            cluster.node
        ));
    }
    for node in cluster
        .nodes
        .iter()
        .filter(|node| !node.mismatches.is_empty())
    {
        hints.push(difference(node, &cluster.node));
    }

    for node in &cluster.nodes {
        if let Some(silent) = away(node) {
            let (name, silent) = (&node.name, humantime::format_duration(silent));
            hints.push(format!("{name} has not shown itself for {silent}"));
        }
    }

    let mut names = BTreeSet::new();
    let twice = cluster
        .nodes
        .iter()
        .find(|node| !names.insert(node.name.as_str()));
    if let Some(node) = twice {
        let name = &node.name;
        hints.push(format!(
            "two nodes have the name {name}: give each its own (--node)"
        ));
    }
    if cluster.nodes.is_empty() {
        hints.push("only a client with `admin = true` sees the nodes".to_owned());
    }
    hints
}

/// What to do about a node that differs from the one that answers.
fn difference(node: &v1::ClusterNode, answers: &str) -> String {
    let (name, what) = (&node.name, node.mismatches.join(","));
    let is = |what: &str| node.mismatches.iter().any(|mismatch| mismatch == what);
    if is("chain") {
        format!(
            "{name} and {answers} differ ({what}): find out which is right before anything is written"
        )
    } else if is("stream") {
        format!(
            "{name} has read another stream than {answers}: one of them needs a new data directory"
        )
    } else {
        format!("{name} and {answers} differ ({what}): give all nodes the same")
    }
}

pub(in crate::cli) fn as_json(cluster: &v1::ClusterInfo) -> Value {
    let node = |node: &v1::ClusterNode| {
        json!({
            "name": node.name,
            "version": node.version,
            "place": node.place,
            "stream_lag": node.stream_lag,
            "ready": node.ready,
            "mismatches": node.mismatches,
            "away_seconds": away(node).map(|silent| silent.as_secs()),
        })
    };
    json!({
        "name": cluster.name,
        "node": cluster.node,
        "writer": cluster.writer,
        "nodes": cluster.nodes.iter().map(node).collect::<Vec<_>>(),
        "stream_lag": cluster.stream_lag,
        "ready": cluster.ready,
        "problem": cluster.problem,
        "hole": cluster.hole,
        "stream_bytes": cluster.stream_bytes,
        "stream_bytes_max": cluster.stream_bytes_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> v1::ClusterNode {
        v1::ClusterNode {
            name: name.into(),
            version: "0.1.0".into(),
            place: Some(7),
            ready: Some(true),
            ..v1::ClusterNode::default()
        }
    }

    fn cluster() -> v1::ClusterInfo {
        v1::ClusterInfo {
            name: "main".into(),
            node: "a".into(),
            writer: "b".into(),
            nodes: vec![node("a"), node("b")],
            ready: true,
            stream_bytes: 150,
            stream_bytes_max: 1_000,
            ..v1::ClusterInfo::default()
        }
    }

    #[test]
    fn a_healthy_cluster_is_shown_without_hints() {
        assert_eq!(
            summary(&cluster()),
            "cluster  main\nnode     a, ready\nwriter   b\nstream   0 messages behind; 150 of 1000 bytes are used, 15 %\n"
        );
        let rows = cluster().nodes;
        assert_eq!(
            row(&cluster(), &rows[0], true),
            ["a (this one)", "0.1.0", "no", "yes", "7", "0", "-"]
        );
        assert_eq!(row(&cluster(), &rows[1], false)[2], "yes");
        assert_eq!(hints(&cluster()), [""; 0]);
    }

    #[test]
    fn what_is_wrong_or_not_known_is_said() {
        let mut other = node("b");
        (other.place, other.ready) = (None, None);
        other.mismatches = vec!["chain".into()];
        let wrong = v1::ClusterInfo {
            writer: String::new(),
            nodes: vec![node("a"), other.clone(), node("a")],
            ready: false,
            problem: "hole: the stream ends".into(),
            hole: true,
            stream_lag: 1,
            stream_bytes_max: 0,
            ..cluster()
        };
        let text = summary(&wrong);
        assert!(
            text.contains("a, not ready: hole: the stream ends\n"),
            "{text}"
        );
        assert!(text.contains("writer   not known yet"), "{text}");
        assert!(text.ends_with("stream   1 message behind\n"), "{text}");
        assert_eq!(
            row(&wrong, &other, false)[2..],
            ["no", "?", "?", "0", "chain"]
        );
        let said = hints(&wrong).join("\n");
        for part in [
            "a follows the stream no more",
            "b and a differ (chain)",
            "the name a:",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let mut healed = cluster();
        healed.nodes[1].mismatches = vec!["stream".into()];
        let said = hints(&healed).join("\n");
        assert!(said.contains("b has read another stream than a"), "{said}");

        let mut gone = node("b");
        gone.away_for = Some(prost_types::Duration {
            seconds: 65,
            nanos: 1,
        });
        assert_eq!(row(&cluster(), &gone, false)[3], "away");
        let mut away = cluster();
        away.nodes[1] = gone;
        let said = hints(&away).join("\n");
        assert!(said.contains("b has not shown itself for 1m 5s"), "{said}");
        assert_eq!(as_json(&away)["nodes"][1]["away_seconds"], 65);
        assert_eq!(as_json(&away)["nodes"][0]["away_seconds"], Value::Null);
    }

    #[test]
    fn json_has_the_names_of_the_proto() {
        let value = as_json(&cluster());
        assert_eq!(value["nodes"][1]["name"], "b");
        assert_eq!(value["nodes"][1]["ready"], true);
        assert_eq!(value["stream_bytes_max"], 1_000);
    }
}
