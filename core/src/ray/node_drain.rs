//! What Ray is told of the drain of a Kubernetes node, and how long the drain waits for it: Ray's nodes on it take no new
//! work, and leave when what runs on them has ended. So nothing of Ray's is cut off by an eviction that could have ended,
//! or moved, before it.
//!
//! Level-triggered: whether one is asked follows from what its head said last, so there is nothing to remember but since
//! when one is asked in vain.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{NodeState, Problem};
use crate::drain::{Hook, HookPhase, OnFailure, When};
use crate::intent::Intent;
use crate::time::{Instant, format_duration};

/// The name of the [`hook`]. Those of operators' hooks begin otherwise.
pub const HOOK: &str = "ebb.dev/ray";

/// How long a drain waits for a coordinator that does not answer: another leader takes over in less.
const SILENCE: Duration = Duration::from_secs(30);
/// Longer than any drain: its own deadline ends it.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// After so long an agent has heard from its coordinator, or will not soon.
const WORD_COMES: Duration = Duration::from_secs(3);

/// How long a drain waits for a head that tells nothing: one that is started anew has answered by then.
const HEAD_SILENCE: Duration = Duration::from_secs(15);
/// A node that a head was asked to drain is draining in the next reading or the one after it. After so long it is not
/// going to.
const TAKES_EFFECT: Duration = Duration::from_secs(15);
/// A worker that has joined shows in the next reading or the one after it, of which there is one each second.
const SHOWS: Duration = Duration::from_secs(3);
/// For so long it is remembered that a node was asked in vain; its drain is over by then, one way or the other.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// The hook by which each agent asks its coordinator. Ray cannot be called back from a drain: so it is asked as late as can
/// be, after the preflight and all others that may veto, and right before the first eviction.
pub fn hook() -> Hook {
    Hook {
        name: HOOK.into(),
        phases: [HookPhase::PreTier].into(),
        timeout: NO_TIMEOUT,
        silence: Some(SILENCE),
        on_failure: OnFailure::Continue,
        when: When::Any,
    }
}

/// Whether an agent that has not heard whether there is Ray waits for that word: only one that was started anew since the
/// drain was asked for, which hears in a moment what it knew before. A drain that begins does not wait for a coordinator
/// that was never there.
pub fn awaits_word(now: Instant, started: Instant, drain: &Intent) -> bool {
    drain.requested_at < started && now < started + WORD_COMES
}

/// What is known of Ray on one Kubernetes node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OnNode {
    /// Ray's nodes that have joined and not left.
    pub workers: Vec<Worker>,
    /// Clusters with pods on it whose heads tell nothing, why, and since when.
    pub silent: BTreeMap<String, (Problem, Instant)>,
    /// Clusters with pods on it whose heads were not heard yet.
    pub unheard: Vec<String>,
    /// Pods of workers that no head knows: they may have joined since it last told. Each with its cluster.
    #[serde(default)]
    pub joining: Vec<(String, String)>,
}

/// One of Ray's nodes, with its pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// `NAMESPACE/NAME`, as that of the pod.
    pub cluster: String,
    pub pod: String,
    /// Ray's.
    pub id: String,
    pub state: NodeState,
}

/// What is to be done for a drain that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Whose heads are to be asked to drain them.
    pub ask: Vec<Worker>,
    pub answer: Answer,
}

/// What the drain is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Nothing of Ray's is there any more.
    Done,
    /// It is to ask again, for this reason.
    Wait(String),
    /// It is to go on although some are there, for this reason.
    PassOver(String),
}

/// Nodes that were asked to drain and do not, by Ray's id; and pods that may be joining, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InVain(BTreeMap<String, Since>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Since {
    at: Instant,
    /// What came of the last attempt, if that is known.
    why: Option<String>,
}

impl InVain {
    pub fn decide(&mut self, now: Instant, on: &OnNode) -> Decision {
        self.0.retain(|_, since| now < since.at + REMEMBERED);
        let mut ask = Vec::new();
        let (mut awaited, mut passed) = (Vec::new(), Vec::new());
        for (cluster, (problem, since)) in &on.silent {
            if now < *since + HEAD_SILENCE {
                awaited.push(format!("the head of Ray cluster {cluster} is not heard: {problem}"));
            } else {
                let silent = format_duration(HEAD_SILENCE);
                passed.push(format!("Ray cluster {cluster} is not waited for, not heard for {silent}: {problem}"));
            }
        }
        awaited.extend(on.unheard.iter().map(|cluster| format!("the head of Ray cluster {cluster} is not heard yet")));
        for (cluster, pod) in &on.joining {
            let since = self.0.entry(pod.clone()).or_insert(Since { at: now, why: None });
            if now < since.at + SHOWS {
                awaited.push(format!("{pod} is not in Ray cluster {cluster}, or has just joined"));
            }
        }
        for worker in on.workers.iter().filter(|worker| !on.silent.contains_key(&worker.cluster)) {
            let Worker { cluster, pod, id, state } = worker;
            match state {
                NodeState::Dead => {}
                NodeState::Draining => {
                    self.0.remove(id);
                    awaited.push(format!("{pod} of Ray cluster {cluster} has work or objects left"));
                }
                NodeState::Idle { .. } | NodeState::Running => {
                    let since = self.0.entry(id.clone()).or_insert(Since { at: now, why: None });
                    if now < since.at + TAKES_EFFECT {
                        awaited.push(format!("{pod} of Ray cluster {cluster} is asked to drain"));
                    } else {
                        let why = since.why.as_deref().unwrap_or("it goes on as if it had not been asked");
                        passed.push(format!("{pod} of Ray cluster {cluster} is not waited for: {why}"));
                    }
                    ask.push(worker.clone());
                }
            }
        }
        let answer = match (awaited.as_slice(), passed.is_empty()) {
            ([], true) => Answer::Done,
            ([], false) => Answer::PassOver(passed.join("; ")),
            ([one], _) => Answer::Wait(one.clone()),
            ([first, rest @ ..], _) => Answer::Wait(format!("{first}, and {} more", rest.len())),
        };
        Decision { ask, answer }
    }

    /// Asking for this node came to nothing.
    pub fn failed(&mut self, id: &str, why: String) {
        if let Some(since) = self.0.get_mut(id) {
            since.why = Some(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::{Permits, Trigger};

    fn at(second: u64) -> Instant {
        Instant::from_millis(second * 1000)
    }

    fn worker(state: NodeState) -> Worker {
        Worker { cluster: "ml/train".into(), pod: "ml/train-cpu-0".into(), id: "0a".into(), state }
    }

    fn on(state: NodeState) -> OnNode {
        OnNode { workers: vec![worker(state)], ..OnNode::default() }
    }

    fn waits(decision: &Decision) -> &str {
        let Answer::Wait(why) = &decision.answer else { panic!("{decision:?}") };
        why
    }

    fn passes_over(decision: &Decision) -> &str {
        let Answer::PassOver(why) = &decision.answer else { panic!("{decision:?}") };
        why
    }

    #[test]
    fn a_node_without_ray_is_not_held_up() {
        let decision = InVain::default().decide(at(0), &OnNode::default());
        assert_eq!(decision, Decision { ask: Vec::new(), answer: Answer::Done });
    }

    #[test]
    fn a_worker_is_asked_until_it_drains_and_then_waited_for_until_it_is_gone() {
        let mut in_vain = InVain::default();
        for state in [NodeState::Running, NodeState::Idle { millis: 9 }] {
            let decision = in_vain.decide(at(0), &on(state));
            assert_eq!(decision.ask, [worker(state)]);
            assert!(waits(&decision).contains("ml/train-cpu-0"), "{decision:?}");
        }
        // For however long that is: the drain itself has a deadline.
        for second in [1, 60, 3600] {
            let decision = in_vain.decide(at(second), &on(NodeState::Draining));
            assert_eq!(decision.ask, []);
            assert!(
                waits(&decision).contains("ml/train-cpu-0 of Ray cluster ml/train has work or objects left"),
                "{decision:?}"
            );
        }
        assert_eq!(in_vain.decide(at(3601), &on(NodeState::Dead)).answer, Answer::Done);
    }

    #[test]
    fn a_worker_that_its_head_does_not_let_go_of_is_waited_for_no_longer_than_a_moment() {
        let mut in_vain = InVain::default();
        in_vain.decide(at(0), &on(NodeState::Running));
        in_vain.failed("0a", "it says no".into());
        waits(&in_vain.decide(at(14), &on(NodeState::Running)));
        let decision = in_vain.decide(at(15), &on(NodeState::Running));
        assert_eq!(passes_over(&decision), "ml/train-cpu-0 of Ray cluster ml/train is not waited for: it says no");
        assert_eq!(decision.ask.len(), 1, "it may let go yet");
        // Once it drains it is waited for, also by a drain that begins after that.
        waits(&in_vain.decide(at(16), &on(NodeState::Draining)));
        waits(&in_vain.decide(at(100), &on(NodeState::Running)));
    }

    #[test]
    fn a_head_that_tells_nothing_holds_up_a_drain_for_a_moment_and_is_not_asked() {
        let silent = |since| OnNode {
            silent: BTreeMap::from([("ml/train".to_owned(), (Problem::Unreachable, at(since)))]),
            ..on(NodeState::Draining)
        };
        let mut in_vain = InVain::default();
        let decision = in_vain.decide(at(100), &silent(86));
        assert!(waits(&decision).contains("is not heard: its GCS cannot be reached"), "{decision:?}");
        assert_eq!(decision.ask, []);
        let decision = in_vain.decide(at(101), &silent(86));
        let why = "Ray cluster ml/train is not waited for, not heard for 15s: its GCS cannot be reached at its address";
        assert_eq!(passes_over(&decision), why);
        // One that was not asked yet will be heard in a moment, or not.
        let unheard = OnNode { unheard: vec!["ml/train".into()], ..OnNode::default() };
        waits(&in_vain.decide(at(0), &unheard));
        // A worker that has just joined is not in what its head last told.
        let joining = OnNode { joining: vec![("ml/train".into(), "ml/a".into())], ..OnNode::default() };
        assert_eq!(waits(&in_vain.decide(at(10), &joining)), "ml/a is not in Ray cluster ml/train, or has just joined");
        assert_eq!(in_vain.decide(at(13), &joining).answer, Answer::Done);
    }

    #[test]
    fn an_agent_that_was_started_anew_during_a_drain_waits_a_moment_to_hear_of_ray() {
        let drain = Intent {
            id: "d".into(),
            reason: String::new(),
            requested_at: at(100),
            deadline: at(200),
            evict: true,
            by: Trigger::Person,
            awaits_turn: false,
            permits: Permits::default(),
        };
        assert!(awaits_word(at(112), at(110), &drain));
        assert!(!awaits_word(at(113), at(110), &drain));
        assert!(!awaits_word(at(101), at(99), &drain));
    }

    #[test]
    fn those_that_can_be_waited_for_are_waited_for_before_the_others_are_passed_over() {
        let mut other = worker(NodeState::Running);
        other.id = "0b".into();
        let mut both = on(NodeState::Draining);
        both.workers.push(other);
        let mut in_vain = InVain::default();
        assert!(waits(&in_vain.decide(at(0), &both)).ends_with("and 1 more"));
        waits(&in_vain.decide(at(30), &both));
        both.workers[0].state = NodeState::Dead;
        passes_over(&in_vain.decide(at(31), &both));
    }
}
