//! What the facts mean: which way agents are held to their nodes, whether it works, and what to do where not. Pure.

use std::collections::BTreeSet;

use super::rights::{
    ACT_AS_NODE, ADMISSION, BEYOND, BROKER, BROKERED, COORDINATOR, DELETE_PODS, HELD, IMPERSONATION, PATCH_NODES,
    READ_NODES, Right, WEBHOOK,
};

/// What could be found out; `Err`: why not.
pub(super) type Known<T> = Result<T, String>;

/// What a cluster shows of itself.
pub(super) struct Facts {
    /// As in `v1.36.3`.
    pub(super) version: Known<Version>,
    /// Whether the API server says that its feature ConstrainedImpersonation is on.
    pub(super) feature: Known<bool>,
    pub(super) policies_served: Known<bool>,
    pub(super) node_restriction: Known<bool>,
    /// The rights of both ServiceAccounts, of those that were asked about.
    pub(super) agent: Known<BTreeSet<Right>>,
    pub(super) coordinator: Known<BTreeSet<Right>>,
    pub(super) guards: Guards,
    pub(super) trial: Known<Trial>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) minor: u32,
    pub(super) text: String,
}

/// Admission objects of the chart's that are there and refuse.
#[derive(Clone, Debug)]
pub(super) struct Guards {
    /// Of the policies, each with its binding.
    pub(super) agent: Known<bool>,
    pub(super) agent_pods: Known<bool>,
    pub(super) coordinator: Known<bool>,
    /// The webhook for evictions, with its CA.
    pub(super) evictions: Known<bool>,
}

/// What a token of an agent's was worth when it was tried, without changing anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// On its own node.
    pub(super) own: bool,
    /// On another node, and on a pod there; `None`: there is only one.
    pub(super) other_node: Option<bool>,
    pub(super) other_pod: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ok,
    Missing,
    Unsafe,
    NotKnown,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Unsafe => "UNSAFE",
            Self::NotKnown => "not known",
        }
    }
}

pub(super) struct Finding {
    pub(super) subject: &'static str,
    pub(super) state: State,
    pub(super) what: String,
    pub(super) advice: Option<String>,
}

/// What holds agents to their own nodes, by the rights they have: the chart's value `agent.rights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Impersonation,
    Admission,
    /// Their coordinator writes for them.
    Brokered,
}

impl Facts {
    pub(super) fn mode(&self) -> Option<Mode> {
        let rights = self.agent.as_ref().ok()?;
        if rights.contains(&ACT_AS_NODE) {
            return Some(Mode::Impersonation);
        }
        // A role that was made by hand is not the chart's: it is judged as what the cluster does best.
        let is_guarded = self.guards.agent != Ok(false) || self.guards.evictions != Ok(false);
        match (rights.contains(&PATCH_NODES), rights.contains(&READ_NODES)) {
            (true, _) => is_guarded.then_some(Mode::Admission),
            (false, reads) => reads.then_some(Mode::Brokered),
        }
    }

    /// What this cluster can do best; `None`: not known.
    pub(super) fn best(&self) -> Option<Mode> {
        let minor = self.version.as_ref().ok()?.minor;
        match &self.feature {
            Ok(true) => Some(Mode::Impersonation),
            Err(_) if minor >= 36 => Some(Mode::Impersonation),
            _ if minor >= 30 => Some(Mode::Admission),
            _ => Some(Mode::Brokered),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mode = self.mode();
        let mut found = vec![self.kubernetes(), self.impersonation(mode), self.node_restriction(mode), self.policies()];
        found.extend(self.agent(mode));
        if mode == Some(Mode::Admission) {
            found.extend(self.guards());
        }
        found.extend(self.trial());
        found.extend(self.coordinator(mode));
        found
    }

    fn kubernetes(&self) -> Finding {
        match &self.version {
            Ok(Version { minor, text }) if *minor >= 30 => ok("Kubernetes", text.clone()),
            Ok(Version { text, .. }) if self.mode() == Some(Mode::Brokered) => {
                ok("Kubernetes", format!("{text}: which node a token is bound to is told by its pod"))
            }
            Ok(Version { text, .. }) => wrong(
                State::Missing,
                "Kubernetes",
                format!("{text}: tokens do not say which node they are bound to"),
                "before 1.30 agents can be held to their nodes with agent.rights=brokered only",
            ),
            Err(why) => not_known("Kubernetes", why, "see `kubectl version`"),
        }
    }

    fn impersonation(&self, mode: Option<Mode>) -> Finding {
        const SUBJECT: &str = "constrained impersonation";
        let proven = mode == Some(Mode::Impersonation) && self.trial.as_ref().is_ok_and(|trial| trial.own);
        let refused = mode == Some(Mode::Impersonation) && self.trial.as_ref().is_ok_and(|trial| !trial.own);
        match &self.feature {
            _ if proven => ok(SUBJECT, "an agent's token acted as its node".to_owned()),
            Ok(false) | Err(_) if mode == Some(Mode::Admission) => {
                ok(SUBJECT, "not needed: agents act as themselves".to_owned())
            }
            Ok(false) | Err(_) if mode == Some(Mode::Brokered) => {
                ok(SUBJECT, "not needed: agents write nothing".to_owned())
            }
            Ok(false) => wrong(
                State::Missing,
                SUBJECT,
                "the API server has it switched off, or does not know it".to_owned(),
                "start the API servers with --feature-gates=ConstrainedImpersonation=true (1.35; on by default in 1.36), \
                 or install with agent.rights=admission",
            ),
            _ if refused => wrong(
                State::Missing,
                SUBJECT,
                "an agent's token was refused to act as its node".to_owned(),
                "are all API servers of one version, with the feature ConstrainedImpersonation? Or install with \
                 agent.rights=admission",
            ),
            Ok(true) => ok(SUBJECT, "switched on".to_owned()),
            Err(why) => not_known(
                SUBJECT,
                why,
                "ask whoever runs the API server whether the feature ConstrainedImpersonation is on",
            ),
        }
    }

    fn node_restriction(&self, mode: Option<Mode>) -> Finding {
        const SUBJECT: &str = "NodeRestriction";
        match &self.node_restriction {
            Ok(true) => ok(SUBJECT, "in the name of a node, another was not to be changed".to_owned()),
            Ok(false) if matches!(mode, Some(Mode::Admission | Mode::Brokered)) => wrong(
                State::Unsafe,
                SUBJECT,
                "off: each kubelet can change all nodes".to_owned(),
                "start the API servers with --enable-admission-plugins=NodeRestriction. Agents are held without it",
            ),
            Ok(false) => wrong(
                State::Unsafe,
                SUBJECT,
                "off: in the name of one node, another can be changed".to_owned(),
                "start the API servers with --enable-admission-plugins=NodeRestriction: nothing else holds an agent to its \
                 own node",
            ),
            Err(why) => not_known(
                SUBJECT,
                why,
                "ask whoever runs the API server whether --enable-admission-plugins names it (EKS and kubeadm do)",
            ),
        }
    }

    fn policies(&self) -> Finding {
        const SUBJECT: &str = "admission policies";
        match &self.policies_served {
            Ok(true) => ok(SUBJECT, "served".to_owned()),
            Ok(false) => wrong(
                State::Missing,
                SUBJECT,
                "the API server knows no ValidatingAdmissionPolicy".to_owned(),
                "1.30 has them; without, nothing holds the coordinator to what it needs to change of nodes",
            ),
            Err(why) => not_known(SUBJECT, why, "see `kubectl api-resources --api-group admissionregistration.k8s.io`"),
        }
    }

    fn agent(&self, mode: Option<Mode>) -> Vec<Finding> {
        const NEEDS: &str = "agent: what it needs";
        const MORE: &str = "agent: nothing more";
        let rights = match &self.agent {
            Ok(rights) => rights,
            Err(why) => return vec![not_known(NEEDS, why, MAY_REVIEW), not_known(MORE, why, MAY_REVIEW)],
        };
        let needed: &[Right] = match mode.or(self.best()) {
            Some(Mode::Admission) => &ADMISSION,
            Some(Mode::Brokered) => &BROKERED,
            Some(Mode::Impersonation) | None => &IMPERSONATION,
        };
        let needs =
            lacking(NEEDS, needed, rights, "install the chart, or its manifests, with its ClusterRole ebb-agent");
        let held = |right: &Right| {
            let by = match *right {
                DELETE_PODS => &self.guards.agent_pods,
                right if HELD.contains(&right) && right.resource == "pods/eviction" => &self.guards.evictions,
                right if HELD.contains(&right) => &self.guards.agent,
                _ => return false,
            };
            // A guard that cannot be seen is judged where guards are.
            mode == Some(Mode::Admission) && *by != Ok(false)
        };
        let beyond: Vec<_> = BEYOND.iter().filter(|right| rights.contains(right) && !held(right)).collect();
        let more = if beyond.is_empty() {
            let what = match mode {
                Some(Mode::Admission) => "but for what admission holds to its node",
                _ => "it has no write right of its own",
            };
            ok(MORE, what.to_owned())
        } else {
            wrong(
                State::Unsafe,
                MORE,
                format!("with a token of one node it may, on all: {}", listed(&beyond)),
                "find what grants it (`kubectl get clusterrolebindings --output wide`) and take that away: whoever breaks \
                 out on one node has all of them",
            )
        };
        vec![needs, more]
    }

    fn guards(&self) -> Vec<Finding> {
        let guard = |subject, known: &Known<bool>, what: &str, advice: &str| match known {
            Ok(true) => ok(subject, what.to_owned()),
            Ok(false) => wrong(State::Unsafe, subject, "not there, or it does not refuse".to_owned(), advice),
            Err(why) => not_known(subject, why, advice),
        };
        vec![
            guard(
                "agent: held to its node",
                &self.guards.agent,
                "the policy ebb-agent is bound",
                "install the chart with agent.rights=admission: ValidatingAdmissionPolicy ebb-agent and its binding",
            ),
            guard(
                "agent: held to its pods",
                &self.guards.evictions,
                "the webhook ebb-agent refuses where it is not answered, and has its CA",
                "install the chart with agent.rights=admission, and let the coordinator run: it writes the CA into the \
                 ValidatingWebhookConfiguration ebb-agent",
            ),
        ]
    }

    /// Without changing anything.
    fn trial(&self) -> Vec<Finding> {
        const SUBJECT: &str = "a token, tried";
        let trial = match &self.trial {
            Ok(trial) => trial,
            Err(why) => {
                return vec![not_known(SUBJECT, why, "needs a running agent, and the right to create its token")];
            }
        };
        let reaches: Vec<_> = [(trial.other_node, "another node"), (trial.other_pod, "a pod on another node")]
            .into_iter()
            .filter_map(|(reached, what)| (reached == Some(true)).then_some(what))
            .collect();
        if !reaches.is_empty() {
            return vec![wrong(
                State::Unsafe,
                SUBJECT,
                format!("a token of one node's agent reaches {}", reaches.join(" and ")),
                "what is UNSAFE or not known above says why",
            )];
        }
        match (trial.own, trial.other_node) {
            (true, _) if self.mode() == Some(Mode::Brokered) => vec![wrong(
                State::Unsafe,
                SUBJECT,
                "an agent's token writes to its own node by itself, past the coordinator".to_owned(),
                "what is UNSAFE above says why",
            )],
            (false, _) if self.mode() == Some(Mode::Brokered) => vec![ok(
                SUBJECT,
                "by itself it writes to no node; what the coordinator writes for it was not tried from here".to_owned(),
            )],
            (false, _) => vec![wrong(
                State::Missing,
                SUBJECT,
                "an agent's token does not reach its own node: no drain works".to_owned(),
                "what is missing above says why",
            )],
            (true, Some(_)) => vec![ok(SUBJECT, "it reaches its own node, and no other".to_owned())],
            (true, None) => vec![ok(SUBJECT, "it reaches its own node; there is no other to try".to_owned())],
        }
    }

    fn coordinator(&self, mode: Option<Mode>) -> Vec<Finding> {
        const NEEDS: &str = "coordinator: what it needs";
        const HELD: &str = "coordinator: held to one annotation";
        const HELD_TO_DRAINS: &str = "coordinator: held to what a drain changes";
        let held_to = if mode == Some(Mode::Brokered) { HELD_TO_DRAINS } else { HELD };
        let besides: &[Right] = match mode {
            Some(Mode::Admission) => &[WEBHOOK],
            Some(Mode::Brokered) => &BROKER,
            Some(Mode::Impersonation) | None => &[],
        };
        let needed: Vec<_> = COORDINATOR.iter().chain(besides).copied().collect();
        let needs = match &self.coordinator {
            Ok(rights) => {
                lacking(NEEDS, &needed, rights, "install the chart, or its manifests, with its roles ebb-coordinator")
            }
            Err(why) => not_known(NEEDS, why, MAY_REVIEW),
        };
        let patches = self.coordinator.as_ref().is_ok_and(|rights| rights.contains(&PATCH_NODES));
        let held = match &self.guards.coordinator {
            Ok(true) => ok(held_to, "the policy ebb-coordinator is bound".to_owned()),
            Ok(false) if !patches => ok(held_to, "it may change no node".to_owned()),
            Ok(false) => wrong(
                State::Unsafe,
                held_to,
                "it may change all of every node".to_owned(),
                "install the chart, or its manifests, with the ValidatingAdmissionPolicy ebb-coordinator and its binding",
            ),
            Err(why) => not_known(held_to, why, "see `kubectl get validatingadmissionpolicybinding ebb-coordinator`"),
        };
        vec![needs, held]
    }
}

const MAY_REVIEW: &str = "needs the right to create subjectaccessreviews";

fn ok(subject: &'static str, what: String) -> Finding {
    Finding { subject, state: State::Ok, what, advice: None }
}

fn wrong(state: State, subject: &'static str, what: String, advice: &str) -> Finding {
    Finding { subject, state, what, advice: Some(advice.to_owned()) }
}

fn not_known(subject: &'static str, why: &str, advice: &str) -> Finding {
    wrong(State::NotKnown, subject, why.to_owned(), advice)
}

fn lacking(subject: &'static str, needed: &[Right], rights: &BTreeSet<Right>, advice: &str) -> Finding {
    let lacking: Vec<_> = needed.iter().filter(|right| !rights.contains(right)).collect();
    if lacking.is_empty() {
        ok(subject, format!("all {} rights", needed.len()))
    } else {
        let all = lacking.len() == needed.len();
        let what = if all {
            format!("none of its {} rights", needed.len())
        } else {
            format!("it may not {}", listed(&lacking))
        };
        wrong(State::Missing, subject, what, advice)
    }
}

fn listed(rights: &[&Right]) -> String {
    rights.iter().map(|right| right.words()).collect::<Vec<_>>().join(", ")
}
