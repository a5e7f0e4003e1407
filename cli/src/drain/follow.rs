//! Follows a Node from the wish to its end, and says each step once.

use std::pin::pin;
use std::time::Duration;

use ebb_core::intent::{CONDITION_DRAINED, CONDITION_DRAINING, CONDITION_PLANNED, Phase, Progress};
use ebb_core::kubernetes::Node;
use ebb_core::time::Instant;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1 as api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};

use super::{now, say};

/// An agent takes a wish up as soon as its watch brings it. After this long there is something to tell.
const PATIENCE: Duration = Duration::from_secs(30);
/// The agent gives up at the deadline and writes it down; its clock may be behind ours.
const GRACE: Duration = Duration::from_secs(60);

/// What is waited for.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Drained {
        id: String,
        deadline: Instant,
    },
    /// What a drain that was taken back has changed.
    Undone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Failed,
}

/// How far it is, in words, and whether that is its end.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    what: String,
    end: Option<End>,
}

pub(super) async fn follow(client: &Client, name: &str, uid: &str, wanted: Wanted) -> End {
    let begun = now();
    let nodes = watch_object(Api::<api::Node>::all(client.clone()), name).default_backoff();
    let mut nodes = pin!(nodes.into_stream());
    let (mut node, mut said, mut unreachable) = (None, String::new(), String::new());
    loop {
        // Time passes without the Node's doing, too.
        match tokio::time::timeout(PATIENCE, nodes.next()).await {
            Ok(Some(Ok(seen))) => {
                unreachable.clear();
                node = Some(seen.filter(|node| node.metadata.uid.as_deref() == Some(uid)));
            }
            // The stream comes back by itself.
            Ok(Some(Err(error))) => {
                let error = format!("cannot see the node, still trying: {error}");
                if error != unreachable {
                    say(name, &error);
                    unreachable = error;
                }
            }
            Ok(None) | Err(_) => {}
        }
        let Some(node) = &node else { continue };
        let Standing { what, end } = standing(node.as_ref(), &wanted, begun, now());
        if what != said {
            say(name, &what);
            said = what;
        }
        if let Some(end) = end {
            return end;
        }
    }
}

/// `None`: the Node is gone, or another one has its name.
fn standing(node: Option<&api::Node>, wanted: &Wanted, begun: Instant, now: Instant) -> Standing {
    let at = |what: String, end| Standing { what, end };
    let failed = |what: &str| at(what.to_owned(), Some(End::Failed));
    let Some(object) = node else {
        return match wanted {
            Wanted::Drained { .. } => failed("the Node object is gone, and was not seen drained"),
            Wanted::Undone => at("the Node object is gone".to_owned(), Some(End::Well)),
        };
    };
    let node = Node::from(object);
    let (id, deadline) = match wanted {
        Wanted::Drained { id, deadline } => (id, *deadline),
        Wanted::Undone if node.progress.is_none() => {
            return at("no drain of a person's stands, and nothing is left of one".to_owned(), Some(End::Well));
        }
        Wanted::Undone if now >= begun + GRACE => return failed(NO_AGENT),
        Wanted::Undone => return at("the drain is taken back; the agent undoes what it changed".to_owned(), None),
    };
    match &node.intent {
        Some(intent) if intent.id == *id => {}
        Some(other) => return failed(&format!("another drain is wanted in place of this one: {}", other.reason)),
        None => return failed("the drain was taken back: somebody removed the annotation ebb.dev/drain"),
    }
    let progress = node.progress.as_ref().filter(|progress| progress.id == *id);
    if now >= deadline + GRACE && progress.is_none_or(|progress| progress.phase != Phase::Drained) {
        return failed(&format!("its deadline has passed, and no agent has given it up. {NO_AGENT}"));
    }
    match progress {
        None if now >= begun + PATIENCE => at(NO_AGENT.to_owned(), None),
        None => at("waiting for the node's agent".to_owned(), None),
        Some(progress) => match progress.phase {
            // The coordinator believes the condition, which is written after.
            Phase::Drained if node.drained => {
                at(format!("drained: {}", message(object, CONDITION_DRAINED)), Some(End::Well))
            }
            Phase::Drained => at("empty, and about to say so".to_owned(), None),
            Phase::Failed => {
                match condition(object, CONDITION_DRAINING).filter(|condition| condition.status == "False") {
                    Some(condition) => failed(&format!(
                        "given up ({}): {}",
                        condition.reason.as_deref().unwrap_or_default(),
                        condition.message.as_deref().unwrap_or_default()
                    )),
                    None => at("given up".to_owned(), None),
                }
            }
            // What is waited for before the first eviction.
            _ if node.planned && !node.draining => {
                at(format!("{}: {}", phase(progress), message(object, CONDITION_PLANNED)), None)
            }
            _ if node.draining => at(format!("{}: {}", phase(progress), message(object, CONDITION_DRAINING)), None),
            _ => at(phase(progress), None),
        },
    }
}

const NO_AGENT: &str = "the node's agent has not answered: does ebb-agent run there? `kubectl --namespace ebb get pods \
                        --output wide` shows it";

/// As it stands in the annotation.
fn phase(progress: &Progress) -> String {
    let word = serde_json::to_value(progress.phase).ok();
    word.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_owned()
}

fn condition<'a>(node: &'a api::Node, name: &str) -> Option<&'a api::NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

fn message<'a>(node: &'a api::Node, name: &str) -> &'a str {
    condition(node, name).and_then(|condition| condition.message.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOON: u64 = 1_795_867_200_000;

    fn seen(annotations: Value, conditions: Value) -> api::Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "uid": "u", "annotations": annotations},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn wish(id: &str) -> String {
        format!(
            r#"{{"id":"{id}","reason":"disk","requestedAt":"2026-11-28T12:00:00Z","deadline":"2026-11-28T13:00:00Z"}}"#
        )
    }

    fn progress(phase: &str) -> String {
        format!(r#"{{"id":"mine","phase":"{phase}","cordonedByUs":true}}"#)
    }

    fn check(node: Option<api::Node>, wanted: &Wanted, seconds: u64, expected: &str, end: Option<End>) {
        let (begun, now) = (Instant::from_millis(NOON), Instant::from_millis(NOON + seconds * 1000));
        let found = standing(node.as_ref(), wanted, begun, now);
        assert!(found.what.starts_with(expected) && found.end == end, "{found:?}, expected {expected}, {end:?}");
    }

    #[test]
    fn each_step_of_a_drain_has_its_words() {
        let wanted = Wanted::Drained { id: "mine".into(), deadline: Instant::from_millis(NOON + 3_600_000) };
        let check = |node, seconds, expected: &str, end| check(node, &wanted, seconds, expected, end);
        let asked = || json!({"ebb.dev/drain": wish("mine")});
        let at = |phase: &str| json!({"ebb.dev/drain": wish("mine"), "ebb.dev/drain-progress": progress(phase)});
        let condition = |name: &str, status: &str, reason: &str, message: &str| json!({"type": name, "status": status, "reason": reason, "message": message});
        check(Some(seen(asked(), json!([]))), 0, "waiting for the node's agent", None);
        check(Some(seen(asked(), json!([]))), 30, "the node's agent has not answered", None);
        check(Some(seen(asked(), json!([]))), 3660, "its deadline has passed", Some(End::Failed));
        check(Some(seen(at("draining"), json!([]))), 0, "draining", None);
        let draining = condition("DrainInProgress", "True", "DrainStarted", "2 pods are left");
        check(Some(seen(at("draining"), json!([draining]))), 0, "draining: 2 pods are left", None);
        let planned = condition("MaintenancePlanned", "True", "DrainPlanned", "hook ray is awaited");
        check(Some(seen(at("preparing"), json!([planned]))), 0, "preparing: hook ray is awaited", None);
        check(Some(seen(at("drained"), json!([draining]))), 0, "empty, and about", None);
        let drained = condition("Drained", "True", "DrainCompleted", "no pod is left");
        check(Some(seen(at("drained"), json!([drained]))), 0, "drained: no pod is left", Some(End::Well));
        // Told late, it is drained all the same.
        check(Some(seen(at("drained"), json!([drained]))), 9999, "drained: no pod is left", Some(End::Well));
        check(Some(seen(at("failed"), json!([draining]))), 0, "given up", None);
        let failed = condition("DrainInProgress", "False", "DeadlineExceeded", "too late");
        check(Some(seen(at("failed"), json!([failed]))), 0, "given up (DeadlineExceeded): too late", Some(End::Failed));
        check(Some(seen(json!({}), json!([]))), 0, "the drain was taken back", Some(End::Failed));
        let other = json!({"ebb.dev/drain": wish("theirs")});
        check(Some(seen(other, json!([]))), 0, "another drain is wanted in place of this one: disk", Some(End::Failed));
        check(None, 0, "the Node object is gone", Some(End::Failed));
    }

    #[test]
    fn a_drain_that_is_taken_back_ends_when_nothing_of_it_is_left() {
        let left = json!({"ebb.dev/drain-progress": progress("draining")});
        check(Some(seen(left.clone(), json!([]))), &Wanted::Undone, 0, "the drain is taken back", None);
        check(Some(seen(left, json!([]))), &Wanted::Undone, 60, "the node's agent has not", Some(End::Failed));
        check(Some(seen(json!({}), json!([]))), &Wanted::Undone, 0, "no drain of a person's stands", Some(End::Well));
        check(None, &Wanted::Undone, 0, "the Node object is gone", Some(End::Well));
    }
}
