//! The API server, as whoever calls us.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Whom to be and where [default: KUBECONFIG, ~/.kube/config, or as a pod in the cluster]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context in it [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl Args {
    /// Reads the configuration; nothing is sent yet.
    pub(crate) async fn config(&self) -> Result<Config> {
        // Several crates ask for it, and none may guess.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        if let Some(path) = &self.kubeconfig {
            let read = async { Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await };
            return read.await.with_context(|| format!("use the kubeconfig {}", path.display()));
        }
        if self.context.is_some() {
            return Config::from_kubeconfig(&options).await.context("use that context of the kubeconfig");
        }
        Config::infer().await.context(
            "find the cluster: say where it is with --kubeconfig or KUBECONFIG (in a pod its ServiceAccount will do)",
        )
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        let mut config = self.config().await?;
        // A 429 is an answer to an eviction, and kube would ask again and again for as long as a budget is spent.
        config.default_retry = false;
        Client::try_from(config).context("make a client of the API server")
    }
}

/// Whether whoever asks may not do it.
pub(crate) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403))
}
