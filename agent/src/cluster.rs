//! The API server, for this node and nobody else. By default every request asks to act as `system:node:<own>`, which is
//! all that the agent's rights allow, and NodeRestriction holds it to its own node; where the cluster cannot have that,
//! the agent acts as itself, and admission holds it, or it only reads, and the coordinator writes for it.

mod broker;

use std::path::{Path, PathBuf};

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

pub use broker::Broker;

/// As the chart's value `agent.rights` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Rights {
    /// As the node, by constrained impersonation (Kubernetes 1.36)
    Impersonation,
    /// As itself, with a policy and a webhook that look at the node its token is bound to (Kubernetes 1.30)
    Admission,
    /// As itself, only to read: the coordinator writes for it
    Brokered,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("use the kubeconfig {}", path.display())]
    Kubeconfig { path: PathBuf, source: KubeconfigError },
    #[error("find the API server as a pod does; outside a cluster use --kubeconfig, or --standalone without one")]
    InCluster(#[source] InClusterError),
    #[error("make a client for the API server")]
    Client(#[source] kube::Error),
}

/// Reads the configuration; nothing is sent yet.
pub async fn client(kubeconfig: Option<&Path>, node: &str, rights: Rights) -> Result<Client, Error> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await.map_err(|source| Error::Kubeconfig { path: path.to_owned(), source })?,
        None => Config::incluster().map_err(Error::InCluster)?,
    };
    // Only the user: the API server adds a node's groups by itself, and refuses any that are asked for.
    config.auth_info.impersonate = match rights {
        Rights::Impersonation => Some(format!("system:node:{node}")),
        Rights::Admission | Rights::Brokered => None,
    };
    config.auth_info.impersonate_groups = None;
    config.auth_info.impersonate_uid = None;
    config.auth_info.impersonate_user_extra = None;
    // A 429 is an answer to an eviction; when to ask again is the drain's to say.
    config.default_retry = false;
    Client::try_from(config).map_err(Error::Client)
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
