//! Puts the parts together, waits for the end, and takes them apart.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use ebb_config::Service;
use ebb_core::classify::IdlePolicy;
use ebb_core::drain;
use ebb_core::notice::Notices;
use ebb_proto::RAY_HOOK;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::{Args, Command, SourceArg};
use crate::clock::Clock;
use crate::drain::Edge;
use crate::drain::hooks::{AboutRay, Hooks};
use crate::health::{Healths, chain};
use crate::metrics::{Dcgm, Metrics, Page, ResourceMetrics};
use crate::sampler::{Input, Sampler};
use crate::server::Server;
use crate::source::imds::{Imds, Requests};
use crate::source::logind::Logind;
use crate::source::open;
use crate::source::pod_resources::{self, PodResources};
use crate::uplink::Uplink;
use crate::{cluster, logging, notices, once, pods, record, rights};

/// Less than the 30 s that Kubernetes gives a pod; no step of ours needs longer, and the Node tells where to go on.
const SHUTDOWN: Duration = Duration::from_secs(5);

pub fn run(args: Args, log: logging::Handle) -> anyhow::Result<()> {
    raise_file_limit();
    if let Some(Command::Record(record)) = &args.command {
        return record::run(&args, record);
    }
    if args.once {
        return once::run(&args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only name lookups and files of certificates run there.
        .max_blocking_threads(2)
        .thread_stack_size(256 << 10)
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(args, log))
}

async fn serve(args: Args, log: logging::Handle) -> anyhow::Result<()> {
    let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
    let mut terminate = signal(terminate).context("listen for SIGTERM")?;
    let mut interrupt = signal(interrupt).context("listen for SIGINT")?;
    let clock = Clock::start();
    let input = Input::open(&args, clock)?;
    give_up_rights(&input);
    let client = match args.node_name.clone().filter(|_| !args.standalone) {
        Some(node) => Some((cluster::client(args.kubeconfig.as_deref(), &node, args.rights).await?, node)),
        None => None,
    };
    let node = args.node_name.as_deref().unwrap_or_default();
    let (mut hooks, mut known_hooks) =
        Hooks::load(node, args.drain.hooks_file.as_deref(), args.drain.hooks_dir.as_deref())?;
    let (has_ray, told) = watch::channel(None);
    let coordinator = Service {
        url: args.coordinator.beside(RAY_HOOK),
        ca_file: Some(args.coordinator_ca.clone()),
        token_file: Some(args.coordinator_token_file.clone()),
        server_name: args.coordinator_server_name.clone(),
    };
    hooks.ask_about_ray(coordinator, AboutRay { told, clock }, &mut known_hooks);
    let drain = drain::Settings {
        leave_load_balancers: args.drain.leave_load_balancers,
        hooks: known_hooks,
        notices: args.drain.notices(),
    };
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %listener.local_addr()?, "started");

    let (sample_sender, samples) = watch::channel(None);
    let (policy_sender, policy) = watch::channel(IdlePolicy::default());
    let (stop_sampler, sampler_stop) = mpsc::channel();
    let (names_sender, names) = watch::channel(Arc::default());
    let (devices_sender, devices) = watch::channel(PodResources::default());
    let (notices_sender, known_notices) = watch::channel(Notices::default());
    let (healths_sender, other_healths) = watch::channel(Healths::default());
    let (may_go_down_sender, may_go_down) = watch::channel(false);
    let sampler = Sampler::new(input, clock, IdlePolicy::default())
        .with_names(names)
        .with_pod_resources(devices)
        .with_others(other_healths)
        .spawn(args.interval, policy, sample_sender, sampler_stop)
        .context("start the sampler's thread")?;

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let metrics = client.is_some().then(Metrics::default);
    let imds = args.imds().map(|endpoint| Imds {
        endpoint,
        interval: args.imds_interval,
        clock,
        notices: notices_sender.clone(),
        healths: healths_sender.clone(),
        requests: Requests::default(),
    });
    let logind = args.logind().map(|address| Logind {
        address,
        boot: kernel(&args, "random/boot_id"),
        clock,
        may_go_down,
        notices: notices_sender.clone(),
        healths: healths_sender,
    });
    let requests = imds.as_ref().map(|imds| imds.requests.clone()).unwrap_or_default();
    let server = Server {
        page: Page::new(samples.clone(), metrics.as_ref()).with_notices(known_notices.clone(), requests),
        samples: samples.clone(),
        dcgm: args.serve_dcgm.then(|| Dcgm { hostname_label: args.dcgm_hostname_label, hostname: hostname(&args) }),
        resource: args.serve_resource_metrics.then_some(ResourceMetrics { clock }),
        node: args.node_name.clone(),
        interval: args.interval,
        log,
        started: std::time::Instant::now(),
    };
    tasks.spawn(Arc::new(server).run(listener, stop.clone()));
    tasks.spawn(notices::follow_gpus(samples.clone(), notices_sender, stop.clone()));
    if let Some(imds) = imds {
        tasks.spawn(imds.run(stop.clone()));
    }
    if let Some(logind) = logind {
        tasks.spawn(logind.run(stop.clone()));
    }
    // A recording is shown with nothing of this machine in it.
    if args.source == SourceArg::Host {
        tasks.spawn(pod_resources::run(args.pod_resources_socket, args.pod_interval, devices_sender, stop.clone()));
    }
    if let Some(((client, node), metrics)) = client.zip(metrics) {
        let (uid_sender, node_uid) = watch::channel(None);
        tasks.spawn(pods::run(client.clone(), node.clone(), names_sender, stop.clone()));
        let writes = match args.rights {
            cluster::Rights::Impersonation | cluster::Rights::Admission => client.clone(),
            cluster::Rights::Brokered => {
                let (ca, server_name) = (args.coordinator_ca.clone(), args.coordinator_server_name.clone());
                cluster::Broker { url: args.broker, ca, server_name, token_file: args.broker_token_file }.client()
            }
        };
        let edge = Edge {
            client,
            writes,
            node: node.clone(),
            clock,
            settings: drain,
            hooks,
            notices: known_notices,
            node_uid: uid_sender,
            may_go_down: may_go_down_sender,
            metrics: metrics.clone(),
        };
        let uplink = Uplink {
            coordinator: args.coordinator,
            ca: args.coordinator_ca,
            server_name: args.coordinator_server_name,
            token_file: args.coordinator_token_file,
            node,
            node_uid,
            samples,
            interval: args.interval,
            clock,
            policy: policy_sender,
            has_ray,
            metrics,
        };
        tasks.spawn(edge.run(stop.clone()));
        tasks.spawn(uplink.run(stop.clone()));
    }
    tasks.close();

    let signal = first(&mut terminate, &mut interrupt).await;
    stop.cancel();
    drop(stop_sampler);
    let ended = tokio::time::timeout(SHUTDOWN, tasks.wait()).await.is_ok();
    // The sampler is not waited for: it may hang in the kernel, and holds nothing that must be put right.
    tracing::info!(signal, in_time = ended, sampler_ended = sampler.is_finished(), "stopped");
    Ok(())
}

/// The Node's name where there is one: a container's own hostname is its pod's.
fn hostname(args: &Args) -> String {
    args.node_name.clone().unwrap_or_else(|| kernel(args, "hostname"))
}

/// What the kernel says of itself; nothing, if it does not.
fn kernel(args: &Args, file: &str) -> String {
    let said = open(&args.proc_root.join("sys/kernel").join(file)).and_then(io::read_to_string);
    said.unwrap_or_default().trim_end().to_owned()
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// All that needs rights is open by now, and this is the only thread.
pub(crate) fn give_up_rights(input: &Input) {
    match rights::give_up(|| input.works()) {
        Ok(rights::Rights { had, kept }) => {
            let because = kept.contains(CapabilitySet::BPF).then_some("this kernel asks for it to read eBPF maps");
            tracing::info!(had = rights::names(had), kept = rights::names(kept), because, "gave up capabilities");
        }
        Err(error) => tracing::warn!(kind = error.kind(), error = chain(&error), "capabilities not given up"),
    }
}

/// The files of each cgroup are kept open. Some container runtimes leave the limit at 1024 although we may raise it.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "file limit not raised");
    }
}
