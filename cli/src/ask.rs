//! What `ebb status` and `ebb explain` ask a coordinator for.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ebb_core::decision::{Decision, Decisions};
use ebb_core::view::{Group, Node, Seen};
use hyper::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{self, Connection, Target};
use crate::text::clean;

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Where the coordinator listens; bring it to this machine with
    /// `kubectl --namespace ebb port-forward deploy/ebb-coordinator 9484`.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9484")]
    pub(crate) coordinator: Target,
    /// `text`, for people; `json`, for programs.
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

/// Everything that it tells.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    #[serde(flatten)]
    pub(crate) seen: Seen,
    /// The newest first.
    pub(crate) decisions: Vec<Decision>,
}

impl Told {
    pub(crate) fn nodes_of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Node> {
        self.seen.cluster.nodes.iter().filter(|node| node.group.as_ref() == Some(&group.name))
    }
}

pub(crate) fn ask(target: &Target) -> Result<Told> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut connection = target.connect().await.with_context(|| {
            format!(
                "reach the coordinator at {target}. If it does not listen there, bring it to this machine with `kubectl \
                 --namespace ebb port-forward deploy/ebb-coordinator 9484`, or say with --coordinator where it does"
            )
        })?;
        let seen: Seen = get(&mut connection, target, "/api/v1/cluster").await?;
        let Decisions { decisions, .. } = get(&mut connection, target, "/api/v1/decisions").await?;
        Ok(Told { seen, decisions })
    })
}

async fn get<T: DeserializeOwned>(connection: &mut Connection, target: &Target, path: &str) -> Result<T> {
    let answer = connection.ask(path).await.with_context(|| format!("ask {target}{path}"))?;
    if !answer.is_json() {
        let client::Answer { status, body, .. } = answer;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            bail!("the coordinator at {target} says: {}", clean(String::from_utf8_lossy(&body).trim()));
        }
        bail!("no coordinator with {path} is at {target} (it says {status}): an agent, or another version?");
    }
    serde_json::from_slice(&answer.body)
        .with_context(|| format!("understand {target}{path}: is the coordinator another version than this ebb?"))
}

/// As it is printed.
pub(crate) fn to_json(told: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(told).context("write it as JSON")?;
    Ok(text + "\n")
}

/// A picture made by hand, as the coordinator's API gives it.
#[cfg(test)]
pub(crate) fn sample() -> Told {
    let seen = serde_json::from_str(include_str!("../tests/coordinator/cluster.json")).unwrap();
    let decisions: Decisions = serde_json::from_str(include_str!("../tests/coordinator/decisions.json")).unwrap();
    Told { seen, decisions: decisions.decisions }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    const CLUSTER: &str = include_str!("../tests/coordinator/cluster.json");
    const DECISIONS: &str = include_str!("../tests/coordinator/decisions.json");

    /// Somebody who gives these answers to the requests on one connection.
    fn answering(answers: Vec<(&'static str, &'static str, String)>) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap().to_string().parse().unwrap();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            for (status, kind, body) in answers {
                let mut line = String::new();
                while stream.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let head =
                    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.get_mut().write_all((head + &body).as_bytes()).unwrap();
            }
        });
        target
    }

    #[test]
    fn cluster_and_decisions_are_asked_for() {
        let json = |body: &str| ("200 OK", "application/json", body.to_owned());
        let told = ask(&answering(vec![json(CLUSTER), json(DECISIONS)])).unwrap();
        assert_eq!((told.seen, told.decisions), (sample().seen, sample().decisions));
    }

    #[test]
    fn whoever_is_no_coordinator_or_no_well_one_is_said_to_be() {
        let check = |status, kind, body: &str, expected: &str| {
            let error = format!("{:#}", ask(&answering(vec![(status, kind, body.to_owned())])).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check(
            "503 Service Unavailable",
            "text/plain",
            "the driver does not answer\n",
            "says: the driver does not answer",
        );
        check("404 Not Found", "text/plain", "", "no coordinator with /api/v1/cluster is at http://127.0.0.1:");
        check("200 OK", "text/html", "<html>", "(it says 200 OK): an agent, or another version?");
        check("200 OK", "application/json", "{}", "is the coordinator another version than this ebb?: missing field");
    }
}
