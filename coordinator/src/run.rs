//! Puts the parts together, and takes them apart again in an order in which nothing is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use ebb_core::fleet::Fleet;
use ebb_page::Page;
use ebb_proto::v1::Settings;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::autoscaling::AutoScaling;
use crate::broker::{self, Broker};
use crate::clock::Clock;
use crate::cluster::{self, Nodes, Seen};
use crate::decisions::Decisions;
use crate::driver::{Driver, INBOX};
use crate::effects;
use crate::evictions;
use crate::http::{self, Shown};
use crate::https;
use crate::kubernetes::Kubernetes;
use crate::lease::Leadership;
use crate::metrics::Metrics;
use crate::metrics_api::{self, FrontProxy, Known, MetricsApi};
use crate::names;
use crate::picture;
use crate::ray;
use crate::real::Real;
use crate::record::Record;
use crate::reports::{self, Gate};
use crate::standing::Standing;
use crate::status::Status;
use crate::tls::Certificates;
use crate::token::{ClusterReview, Tokens};
use crate::webhook;

/// For calls under way and for letting go of the Lease; well below the kubelet's 30 s.
const SHUTDOWN: Duration = Duration::from_secs(12);
/// Questions to the driver that wait: as many as there are scrapers and probes.
const QUERIES: usize = 8;

/// `--check-config`: the answer goes to standard output, problems to standard error.
pub fn check_config(args: &Args) -> ExitCode {
    match ebb_config::read(&args.config, &args.overrides) {
        Ok(policy) => {
            let groups = policy.groups.len();
            let plural = if groups == 1 { "" } else { "s" };
            println!("{}: ok: {groups} group{plural}", args.config.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{:#}", anyhow::Error::new(error));
            ExitCode::FAILURE
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let policy = ebb_config::read(&args.config, &args.overrides)?;
    // Several crates ask for it, and none may guess.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (client, client_once) = clients(args.kubeconfig.as_deref()).await?;
    let namespace = names::namespace(args.namespace);
    let identity = names::identity(args.identity)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

    let mut registry = Registry::default();
    let register = if args.cluster_autoscaler_metrics { Metrics::register_both } else { Metrics::register };
    let metrics = Arc::new(register(&mut registry));
    let clock = Clock::start();
    let record = args.record.as_deref().map(|path| {
        Record::open(path, args.record_max_size, clock.now(), &policy)
            .with_context(|| format!("record to {}", path.display()))
    });
    let record = record.transpose()?;
    let (inbox, events) = mpsc::channel(INBOX);
    let (queries, asked) = mpsc::channel(QUERIES);
    let (outbox, actions) = mpsc::unbounded_channel();
    let standing = Standing::new(inbox.clone());
    let seen = Seen { nodes: Nodes::default(), usage: Known::new(args.listen_metrics_api.is_some()) };
    let page = Page::new(format!("Live cluster, seen by {identity}"));
    let decisions = Decisions::default();

    // Intake and decisions end together and first; the Lease is let go of last, when nothing of ours is under way.
    let stop = CancellationToken::new();
    let let_go = CancellationToken::new();
    let driver = Driver {
        fleet: Fleet::new(policy.clone()),
        clock,
        inbox: events,
        queries: asked,
        outbox,
        metrics: metrics.clone(),
        page: page.clone(),
        decisions: decisions.clone(),
        record,
    };
    let ray_clusters = policy.ray.iter();
    let ray_clusters: BTreeMap<_, _> =
        ray_clusters.map(|(name, cluster)| (name.clone(), Arc::new(ray::Gcs::new(cluster.clone())))).collect();
    let outside = Real {
        ray: ray_clusters.clone(),
        autoscaling: AutoScaling::from_env(metrics.clone()).await,
        kubernetes: Kubernetes::new(client.clone(), identity.clone()),
    };
    let mut intake = JoinSet::new();
    intake.spawn(stop.clone().run_until_cancelled_owned(picture::keep(page.clone(), queries.clone(), clock)));
    let status = Status {
        config_maps: Api::namespaced(client.clone(), &namespace),
        identity: identity.clone(),
        clock,
        standing: standing.clone(),
        queries: queries.clone(),
        inbox: inbox.clone(),
    };
    intake.spawn(stop.clone().run_until_cancelled_owned(status.keep()));
    let registry = Arc::new(registry);
    let shown = Shown {
        registry,
        metrics: metrics.clone(),
        standing: standing.clone(),
        queries: queries.clone(),
        page,
        decisions,
        clock,
    };
    intake.spawn(stop.clone().run_until_cancelled_owned(cluster::watch(
        client.clone(),
        cluster::Agents { namespace: namespace.clone(), service_account: args.agent_service_account.clone() },
        seen.clone(),
        standing.clone(),
        inbox.clone(),
    )));
    if !ray_clusters.is_empty() {
        intake.spawn(stop.clone().run_until_cancelled_owned(ray::watch(client.clone(), inbox.clone())));
    }
    for (name, gcs) in &ray_clusters {
        let head = ray::Head { name: name.clone(), gcs: gcs.clone(), metrics: metrics.clone() };
        intake.spawn(stop.clone().run_until_cancelled_owned(head.keep_asking(standing.clone(), inbox.clone())));
    }
    let (certificate, certificates) = watch::channel(None);
    let keep = Certificates::new(client.clone(), &namespace, &args.tls_san).keep(certificate);
    intake.spawn(stop.clone().run_until_cancelled_owned(keep));
    let account = format!("system:serviceaccount:{namespace}:{}", args.agent_service_account);
    let tokens = |audience| {
        let review = ClusterReview { client: client.clone(), namespace: namespace.clone() };
        Tokens::new(review, audience, account.clone())
    };
    let admission = args.listen_admission.map(|address| {
        intake.spawn(stop.clone().run_until_cancelled_owned(webhook::keep(client.clone(), certificates.clone())));
        let router = evictions::router(client.clone(), account.clone());
        https::serve(address, router, evictions::CONNECTIONS, certificates.clone(), None, stop.clone())
    });
    let broker = args.listen_broker.map(|address| {
        let broker = Broker {
            tokens: tokens(broker::AUDIENCE),
            client: client_once,
            account: account.clone(),
            metrics: metrics.clone(),
        };
        let router = broker::router(broker);
        https::serve(address, router, broker::CONNECTIONS, certificates.clone(), None, stop.clone())
    });
    let metrics_api = args.listen_metrics_api.map(|address| {
        let own = stop.clone();
        for api in &args.metrics_apis {
            let (client, namespace, certificates) = (client.clone(), namespace.clone(), certificates.clone());
            let keep = metrics_api::keep_service(*api, client, namespace, certificates);
            intake.spawn(own.clone().run_until_cancelled_owned(keep));
        }
        let (told, front_proxy) = watch::channel(None);
        let (ca, clients) = watch::channel(None);
        intake.spawn(own.run_until_cancelled_owned(FrontProxy::keep(client.clone(), told, ca)));
        let (known, queries) = (seen.usage.clone(), queries.clone());
        let router = metrics_api::router(&args.metrics_apis, client.clone(), known, queries, clock, front_proxy);
        https::serve(address, router, metrics_api::CONNECTIONS, certificates.clone(), Some(clients), stop.clone())
    });
    let (usage, ray) = (seen.usage.is_wanted(), !policy.ray.is_empty());
    let signals = usage && args.metrics_apis.contains(&MetricsApi::Custom);
    let settings = Settings { usage, signals, ray, ..Settings::from(&policy.idle) };
    let tokens = Arc::new(tokens(ebb_proto::TOKEN_AUDIENCE));
    let node_drains = ray::NodeDrains {
        tokens: tokens.clone(),
        heads: ray_clusters,
        queries,
        standing: standing.clone(),
        clock,
        in_vain: Mutex::default(),
        metrics: metrics.clone(),
    };
    let gate = Gate { seen, clock, standing: standing.clone(), inbox: inbox.clone(), metrics: metrics.clone() };
    let reports = reports::serve(
        args.listen_reports,
        tokens,
        gate,
        settings,
        ray::router(node_drains),
        certificates,
        stop.clone(),
    );
    let effects = effects::run(actions, outside, standing.clone(), inbox.clone(), metrics.clone());
    let mut core = JoinSet::new();
    core.spawn(driver.run(stop.clone()));
    core.spawn(effects);
    let mut lease = JoinSet::new();
    lease.spawn(Leadership::new(client, &namespace, identity.clone(), clock, standing).run(let_go.clone()));
    tracing::info!(%namespace, identity, listen = %args.listen, groups = policy.groups.len(), "started");

    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        _ = intake.join_next() => Some("intake"),
        _ = core.join_next() => Some("core"),
        _ = lease.join_next() => Some("lease"),
        result = reports => {
            result.context("serve reports")?;
            Some("reports")
        }
        result = if_any(admission) => {
            result.context("answer about evictions")?;
            Some("admission")
        }
        result = if_any(broker) => {
            result.context("write for agents")?;
            Some("broker")
        }
        result = if_any(metrics_api) => {
            result.context("serve metrics to the API server")?;
            Some("metrics API")
        }
        result = http::serve(listener, shown, let_go.clone()) => {
            result.context("serve HTTP")?;
            Some("http")
        }
    };
    tracing::info!(ended, "stopping");
    stop.cancel();
    let parts = async {
        while core.join_next().await.is_some() {}
        let_go.cancel();
        while lease.join_next().await.is_some() {}
    };
    match timeout(SHUTDOWN, parts).await {
        Ok(()) => tracing::info!("stopped, nothing left under way"),
        Err(_) => tracing::warn!(seconds = SHUTDOWN.as_secs(), "stopped with calls still under way"),
    }
    match ended {
        Some(part) => bail!("the {part} task ended by itself"),
        None => Ok(()),
    }
}

/// Ends when it does; what there is not never ends.
async fn if_any<T>(part: Option<impl Future<Output = T>>) -> T {
    match part {
        Some(part) => part.await,
        None => std::future::pending().await,
    }
}

/// The second asks once, where the first asks again by itself.
async fn clients(kubeconfig: Option<&Path>) -> anyhow::Result<(kube::Client, kube::Client)> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::incluster().context("find the cluster; outside of one give --kubeconfig")?,
    };
    let mut once = config.clone();
    once.default_retry = false;
    let client = |config| kube::Client::try_from(config).context("make a client of the API server");
    Ok((client(config)?, client(once)?))
}
