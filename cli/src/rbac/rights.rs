//! The rights that Ebb's two ServiceAccounts must have, and those that an agent must not, as RBAC has them. The chart
//! grants the former; `tests/tests/rights.rs` holds both to each other on a real API server.

/// What one verb is allowed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Right {
    pub(super) verb: &'static str,
    pub(super) group: &'static str,
    /// With its subresource, as in `pods/eviction`.
    pub(super) resource: &'static str,
    pub(super) scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Cluster,
    /// Of Ebb's own namespace; with a name, only that object.
    Namespace(Option<&'static str>),
    /// One object without a namespace.
    Named(&'static str),
}

impl Right {
    const fn new(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self { verb, group, resource, scope: Scope::Cluster }
    }

    const fn own(verb: &'static str, group: &'static str, resource: &'static str, name: Option<&'static str>) -> Self {
        Self { verb, group, resource, scope: Scope::Namespace(name) }
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let name = match self.scope {
            Scope::Namespace(Some(name)) | Scope::Named(name) => format!(" {name}"),
            Scope::Cluster | Scope::Namespace(None) => String::new(),
        };
        format!("{} {}{name}", self.verb, self.resource)
    }
}

/// By which an agent acts as its node: without it the others are worth nothing.
pub(super) const ACT_AS_NODE: Right = Right::new("impersonate:associated-node", "authentication.k8s.io", "nodes");

/// `agent.rights: impersonation`.
pub(super) const IMPERSONATION: [Right; 9] = [
    ACT_AS_NODE,
    Right::new("impersonate-on:associated-node:get", "", "nodes"),
    Right::new("impersonate-on:associated-node:list", "", "nodes"),
    Right::new("impersonate-on:associated-node:patch", "", "nodes"),
    Right::new("impersonate-on:associated-node:watch", "", "nodes"),
    Right::new("impersonate-on:associated-node:patch", "", "nodes/status"),
    Right::new("impersonate-on:associated-node:list", "", "pods"),
    Right::new("impersonate-on:associated-node:watch", "", "pods"),
    Right::new("impersonate-on:associated-node:create", "", "pods/eviction"),
];

pub(super) const READ_NODES: Right = Right::new("get", "", "nodes");
pub(super) const PATCH_NODES: Right = Right::new("patch", "", "nodes");
pub(super) const DELETE_PODS: Right = Right::new("delete", "", "pods");

/// `agent.rights: admission`.
pub(super) const ADMISSION: [Right; 8] = [
    READ_NODES,
    Right::new("list", "", "nodes"),
    PATCH_NODES,
    Right::new("watch", "", "nodes"),
    Right::new("patch", "", "nodes/status"),
    Right::new("list", "", "pods"),
    Right::new("watch", "", "pods"),
    Right::new("create", "", "pods/eviction"),
];

/// `agent.rights: brokered`.
pub(super) const BROKERED: [Right; 5] = [
    READ_NODES,
    Right::new("list", "", "nodes"),
    Right::new("watch", "", "nodes"),
    Right::new("list", "", "pods"),
    Right::new("watch", "", "pods"),
];

/// With any of these a stolen token of an agent reaches beyond its node, unless admission holds it.
pub(super) const BEYOND: [Right; 26] = [
    PATCH_NODES,
    Right::new("update", "", "nodes"),
    Right::new("create", "", "nodes"),
    Right::new("delete", "", "nodes"),
    Right::new("patch", "", "nodes/status"),
    Right::new("update", "", "nodes/status"),
    Right::new("get", "", "nodes/proxy"),
    Right::new("create", "", "nodes/proxy"),
    Right::new("create", "", "pods/eviction"),
    DELETE_PODS,
    Right::new("deletecollection", "", "pods"),
    Right::new("create", "", "pods"),
    Right::new("patch", "", "pods"),
    Right::new("update", "", "pods"),
    Right::new("create", "", "pods/exec"),
    Right::new("patch", "", "pods/status"),
    Right::new("get", "", "secrets"),
    Right::new("list", "", "secrets"),
    Right::new("create", "", "serviceaccounts/token"),
    Right::new("impersonate", "", "users"),
    Right::new("impersonate", "", "groups"),
    Right::new("impersonate", "", "serviceaccounts"),
    Right::new("impersonate:arbitrary-node", "authentication.k8s.io", "nodes"),
    Right::new("impersonate:user-info", "authentication.k8s.io", "users"),
    Right::new("impersonate:serviceaccount", "authentication.k8s.io", "serviceaccounts"),
    Right::new("escalate", "rbac.authorization.k8s.io", "clusterroles"),
];

/// What admission holds to one node, of the rights above.
pub(super) const HELD: [Right; 3] =
    [PATCH_NODES, Right::new("patch", "", "nodes/status"), Right::new("create", "", "pods/eviction")];

pub(super) const COORDINATOR: [Right; 22] = [
    Right::new("list", "", "nodes"),
    Right::new("watch", "", "nodes"),
    PATCH_NODES,
    Right::new("list", "", "pods"),
    Right::new("watch", "", "pods"),
    Right::new("watch", "", "persistentvolumeclaims"),
    Right::new("watch", "", "persistentvolumes"),
    Right::new("watch", "policy", "poddisruptionbudgets"),
    Right::new("watch", "storage.k8s.io", "storageclasses"),
    Right::new("watch", "autoscaling.x-k8s.io", "capacitybuffers"),
    Right::new("create", "events.k8s.io", "events"),
    Right::new("create", "authentication.k8s.io", "tokenreviews"),
    Right::own("create", "coordination.k8s.io", "leases", None),
    Right::own("get", "coordination.k8s.io", "leases", Some("ebb-coordinator")),
    Right::own("update", "coordination.k8s.io", "leases", Some("ebb-coordinator")),
    Right::own("create", "", "secrets", None),
    Right::own("get", "", "secrets", Some("ebb-coordinator-tls")),
    Right::own("update", "", "secrets", Some("ebb-coordinator-tls")),
    Right::own("create", "", "configmaps", None),
    Right::own("get", "", "configmaps", Some("ebb-coordinator-ca")),
    Right::own("update", "", "configmaps", Some("ebb-coordinator-ca")),
    Right::own("update", "", "configmaps", Some("ebb-coordinator-status")),
];

/// Besides, where agents act as themselves.
pub(super) const WEBHOOK: Right = Right {
    verb: "patch",
    group: "admissionregistration.k8s.io",
    resource: "validatingwebhookconfigurations",
    scope: Scope::Named("ebb-agent"),
};

/// Besides, where it writes for agents.
pub(super) const BROKER: [Right; 4] = [
    READ_NODES,
    Right::new("patch", "", "nodes/status"),
    Right::new("get", "", "pods"),
    Right::new("create", "", "pods/eviction"),
];
