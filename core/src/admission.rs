//! Whether an agent that acts as itself may evict a pod: one on its own node, by what its token says, and no other.

use crate::time::Instant;

/// Filled in by the API server for a token bound to a pod (KEP-4193; from Kubernetes 1.30).
pub const NODE_NAME_CLAIM: &str = "authentication.kubernetes.io/node-name";
pub const NODE_UID_CLAIM: &str = "authentication.kubernetes.io/node-uid";

/// What is asked for, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Eviction {
    pub username: String,
    /// The token's claims about its node, where it has them.
    pub node: Option<String>,
    pub node_uid: Option<String>,
    /// The UID that the pod must have: the eviction's own precondition, which the API server sees to.
    pub pod_uid: Option<String>,
}

/// The pod of that name and its node, as they are now; `None`: there is no such object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub pod_uid: Option<String>,
    pub pod_made: Option<Instant>,
    pub node: Option<String>,
    pub node_uid: Option<String>,
    pub node_made: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is not the agent, whose evictions alone are judged here")]
    NotAgent(String),
    #[error("the agent's token is not bound to a node")]
    NotBound,
    #[error("an agent's eviction must name its pod by UID (deleteOptions.preconditions.uid)")]
    NoUid,
    #[error("the pod is not on node {0}, to which the agent's token is bound")]
    OtherNode(String),
    #[error("node {0} is another one than that to which the agent's token is bound")]
    OtherUid(String),
}

/// `account`: the agent's full user name. An eviction of a pod that is not there any more is let through: whatever else
/// has its name by now has another UID, so nothing is evicted, and the API server's own answer says why.
pub fn may_evict(account: &str, eviction: &Eviction, found: &Found) -> Result<(), Refusal> {
    if eviction.username != account {
        return Err(Refusal::NotAgent(eviction.username.clone()));
    }
    let (Some(node), Some(node_uid)) = (&eviction.node, &eviction.node_uid) else { return Err(Refusal::NotBound) };
    let Some(pod_uid) = &eviction.pod_uid else { return Err(Refusal::NoUid) };
    if found.pod_uid.as_ref() != Some(pod_uid) {
        return Ok(());
    }
    if found.node.as_ref() != Some(node) {
        return Err(Refusal::OtherNode(node.clone()));
    }
    if found.node_uid.as_ref() != Some(node_uid) {
        return Err(Refusal::OtherUid(node.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:ebb:ebb-agent";

    #[test]
    fn an_agent_evicts_the_very_pod_that_is_on_the_very_node_of_its_token() {
        let check = |change: &dyn Fn(&mut Eviction, &mut Found), expected: Result<(), Refusal>| {
            let text = |text: &str| Some(text.to_owned());
            let mut eviction =
                Eviction { username: ACCOUNT.into(), node: text("n"), node_uid: text("n-uid"), pod_uid: text("p-uid") };
            let mut found =
                Found { pod_uid: text("p-uid"), node: text("n"), node_uid: text("n-uid"), ..Found::default() };
            change(&mut eviction, &mut found);
            assert_eq!(may_evict(ACCOUNT, &eviction, &found), expected, "{eviction:?}, {found:?}");
        };
        check(&|_, _| {}, Ok(()));
        let other = "system:serviceaccount:ebb:other";
        check(&|it, _| it.username = other.into(), Err(Refusal::NotAgent(other.into())));
        check(&|it, _| it.node = None, Err(Refusal::NotBound));
        check(&|it, _| it.node_uid = None, Err(Refusal::NotBound));
        check(&|it, _| it.pod_uid = None, Err(Refusal::NoUid));
        check(&|_, found| found.node = Some("m".into()), Err(Refusal::OtherNode("n".into())));
        // Not bound to any node yet: on none.
        check(&|_, found| found.node = None, Err(Refusal::OtherNode("n".into())));
        check(&|_, found| found.node_uid = Some("new".into()), Err(Refusal::OtherUid("n".into())));
        check(&|_, found| found.node_uid = None, Err(Refusal::OtherUid("n".into())));
        // Gone, or another of the same name, wherever that is.
        check(&|_, found| *found = Found::default(), Ok(()));
        check(&|_, found| found.pod_uid = Some("new".into()), Ok(()));
        let elsewhere = |found: &mut Found| (found.pod_uid, found.node) = (Some("new".into()), Some("m".into()));
        check(&|_, found| elsewhere(found), Ok(()));
    }
}
