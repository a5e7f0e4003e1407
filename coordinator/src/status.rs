//! The status object: the ConfigMap `ebb-coordinator-status`, written by whoever leads. For people, what the coordinator
//! sees; for its successor, what it knows only from having watched ([`Memory`]).

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::fleet::{Event, Memory};
use ebb_core::view::Cluster;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::config_map;
use crate::driver::{self, Queries, Query};
use crate::standing::Standing;

/// The ConfigMap's name, and its keys.
pub const NAME: &str = "ebb-coordinator-status";
const STATUS: &str = "status";
const MEMORY: &str = "memory";

/// Cluster Autoscaler writes its own as often.
const EVERY: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// The API server takes a MiB for the whole object. What is over is a timer that begins anew after a restart.
const LARGEST_MEMORY: usize = 900 << 10;

pub struct Status {
    pub config_maps: Api<ConfigMap>,
    pub identity: String,
    pub clock: Clock,
    pub standing: Standing,
    pub queries: Queries,
    pub inbox: mpsc::Sender<Event>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read or write the ConfigMap {NAME}")]
    Kube(#[from] kube::Error),
    #[error("no reply in {} s", ATTEMPT_TIMEOUT.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
    #[error("the driver does not answer")]
    Stuck,
}

impl Status {
    /// For ever: takes over what the last leader knew, then writes as long as this one leads.
    pub async fn keep(self) {
        loop {
            self.standing.won().await;
            match self.read().await {
                // The driver is gone only when the process is about to be.
                Ok(Some(memory)) => _ = self.inbox.send(Event::Remembered(memory)).await,
                Ok(None) => {}
                Err(error) => complain(&error),
            }
            while self.standing.leads() {
                // What is not complete must not replace what the last one knew.
                if self.standing.synced()
                    && let Err(error) = self.write().await
                {
                    complain(&error);
                }
                sleep(EVERY).await;
            }
        }
    }

    async fn read(&self) -> Result<Option<Memory>, Error> {
        let found = timeout(ATTEMPT_TIMEOUT, self.config_maps.get_opt(NAME)).await??;
        Ok(found.as_ref().and_then(remembered))
    }

    async fn write(&self) -> Result<(), Error> {
        let cluster = driver::ask(&self.queries, Query::Outline).await.ok_or(Error::Stuck)?;
        let memory = driver::ask(&self.queries, Query::Memory).await.ok_or(Error::Stuck)?;
        let mut memory = serde_json::to_string(&memory).expect("a memory always serialises");
        if memory.len() > LARGEST_MEMORY {
            tracing::warn!(bytes = memory.len(), "too much to remember; a successor begins all timers anew");
            memory.clear();
        }
        let data = BTreeMap::from([(STATUS.to_owned(), self.status(&cluster)), (MEMORY.to_owned(), memory)]);
        Ok(timeout(ATTEMPT_TIMEOUT, config_map::set(&self.config_maps, NAME, data)).await??)
    }

    /// Little enough to read at a glance; `ebb status` and `ebb explain` say more.
    fn status(&self, cluster: &Cluster) -> String {
        let nodes = |holds: fn(&ebb_core::view::Node) -> bool| cluster.nodes.iter().filter(|node| holds(node)).count();
        let groups: serde_json::Map<_, _> = cluster
            .groups
            .iter()
            .map(|group| {
                let state = json!({
                    "min": group.min, "max": group.max, "desired": group.desired, "instances": group.instances,
                    "failing": group.failing.as_ref().map(ToString::to_string),
                });
                (group.name.clone(), state)
            })
            .collect();
        let status = json!({
            "at": self.clock.now(),
            "leader": self.identity,
            "groups": groups,
            "nodes": {
                "total": cluster.nodes.len(),
                "ready": nodes(|node| node.ready),
                "idle": nodes(|node| matches!(node.class, Some(ebb_core::classify::Class::Idle { .. }))),
                "draining": nodes(|node| node.draining),
            },
            "podsWaiting": cluster.waiting.len(),
        });
        serde_json::to_string_pretty(&status).expect("plain values always serialise")
    }
}

fn remembered(map: &ConfigMap) -> Option<Memory> {
    let text = map.data.as_ref()?.get(MEMORY).filter(|text| !text.is_empty())?;
    serde_json::from_str(text)
        .inspect_err(
            |error| tracing::warn!(%error, "the last leader's memory is of another version; timers begin anew"),
        )
        .ok()
}

fn complain(error: &Error) {
    let source = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%error, source, "status not kept");
}

#[cfg(test)]
mod tests {
    use ebb_core::time::Instant;

    use super::*;

    #[test]
    fn a_memory_is_read_back_and_what_is_none_is_left() {
        let map = |text: &str| ConfigMap {
            data: Some(BTreeMap::from([(MEMORY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        let at = Instant::from_millis(1_000);
        let memory = Memory {
            at,
            empty_since: BTreeMap::from([("uid".to_owned(), at)]),
            spared_until: BTreeMap::new(),
            failures: BTreeMap::new(),
            failures_in: BTreeMap::new(),
        };
        assert_eq!(remembered(&map(&serde_json::to_string(&memory).unwrap())), Some(memory));
        for text in ["", "{", "[]", r#"{"emptySince": {}}"#] {
            assert_eq!(remembered(&map(text)), None, "{text}");
        }
    }
}
