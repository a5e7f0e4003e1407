//! `ebb drain`: asks a node's own agent to drain it, and follows what becomes of that.

mod follow;
mod preview;
mod sheet;
mod want;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ebb_core::intent::{Intent, Permits, Trigger};
use ebb_core::time::{Instant, parse_duration_within};
use futures::future::join_all;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::kubernetes;
use follow::{End, Wanted};

/// Drains nodes: each node's own agent cordons it, evicts its pods within their PodDisruptionBudgets, and says so; or
/// gives up at the deadline and undoes what it changed.
///
/// Ends with 0 if all are drained, or could be (--dry-run), with 1 if not, with 2 if the command line is wrong.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names of Nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Change nothing: say for each pod what would become of it, and what speaks against the drain
    #[arg(long, conflicts_with_all = ["cancel", "no_wait", "reason"])]
    dry_run: bool,
    /// Why, for people [default: who asked]
    #[arg(long, value_name = "TEXT", conflicts_with = "cancel")]
    reason: Option<String>,
    /// When the drain is given up and undone, from 1m to 7 days
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_timeout, conflicts_with = "cancel")]
    timeout: Duration,
    /// Also evict pods without a controller: nobody makes them anew
    #[arg(long, conflicts_with = "cancel")]
    force: bool,
    /// Also evict pods with volumes of the node's own: what is in them is lost
    #[arg(long, conflicts_with = "cancel")]
    delete_emptydir_data: bool,
    /// Shortly before the deadline, delete the pods that PodDisruptionBudgets still hold (the agent must have that right:
    /// chart value agent.drain.deleteAtDeadline)
    #[arg(long, conflicts_with = "cancel")]
    delete_at_deadline: bool,
    /// Take back the drain that a person asked for
    #[arg(long)]
    cancel: bool,
    /// Also in place of a drain that somebody else asked for
    #[arg(long, conflicts_with = "dry_run")]
    replace: bool,
    /// Ask, and do not wait for the end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    kubernetes: kubernetes::Args,
}

/// What is asked for.
fn intent(args: &Args, reason: String, now: Instant) -> Intent {
    let Args { force, delete_emptydir_data, delete_at_deadline, timeout, .. } = *args;
    Intent {
        id: format!("person-{}", now.since(Instant::from_millis(0)).as_millis()),
        reason,
        requested_at: now,
        deadline: now + timeout,
        evict: true,
        by: Trigger::Person,
        // Of several all are cordoned before the first is emptied.
        awaits_turn: args.nodes.len() > 1,
        permits: Permits { force, delete_emptydir_data, delete_at_deadline },
    }
}

/// Less is no time for pods to end in; more is no drain any more.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 60 * 60);
    parse_duration_within(text, Duration::from_secs(60)..=7 * day, "1m to 168h")
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let well = runtime.block_on(async {
        let client = args.kubernetes.client().await?;
        let reason = if args.cancel || args.dry_run { String::new() } else { reason(&client, args).await };
        let intent = intent(args, reason, now());
        if args.dry_run { preview::run(&client, args, intent).await } else { ask(&client, args, &intent).await }
    })?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all came to a good end. A node that cannot be asked does not keep the others from being drained.
async fn ask(client: &Client, args: &Args, intent: &Intent) -> Result<bool> {
    let mut nodes = Vec::new();
    for name in &args.nodes {
        // None is asked before all are known: a wrong name is a mistake in the command.
        nodes.push((name, node(client, name).await?));
    }
    let drains = nodes.iter().map(async |(name, node)| {
        let uid = node.uid().unwrap_or_default();
        let wanted = if args.cancel {
            want::cancel(client, (name, &uid), args.replace).await?;
            Wanted::Undone
        } else {
            want::drain(client, (name, &uid), intent, args.replace).await?;
            Wanted::Drained { id: intent.id.clone(), deadline: intent.deadline }
        };
        if args.no_wait {
            say(name, if args.cancel { "the drain is taken back" } else { "asked to drain" });
            return anyhow::Ok(true);
        }
        if !args.cancel {
            say(name, &format!("asked to drain. It goes on without this command; `ebb drain {name} --cancel` ends it"));
        }
        Ok(follow::follow(client, name, &uid, wanted).await == End::Well)
    });
    let mut well = true;
    for ended in join_all(drains).await {
        well &= ended.unwrap_or_else(|error| {
            eprintln!("{error:#}");
            false
        });
    }
    Ok(well)
}

async fn node(client: &Client, name: &str) -> Result<Node> {
    match Api::<Node>::all(client.clone()).get_opt(name).await {
        Ok(Some(node)) => Ok(node),
        Ok(None) => bail!("there is no Node {name} in this cluster; `kubectl get nodes` lists them"),
        Err(error) => Err(error).with_context(|| format!("read Node {name}")),
    }
}

/// The person's words, or who the API server takes them for.
async fn reason(client: &Client, args: &Args) -> String {
    if let Some(reason) = &args.reason {
        return reason.clone();
    }
    let review = Api::<SelfSubjectReview>::all(client.clone());
    let review = review.create(&PostParams::default(), &SelfSubjectReview::default()).await.ok();
    let name = review.and_then(|review| review.status?.user_info?.username);
    name.map_or_else(|| "a person asked for it".to_owned(), |name| format!("{name} asked for it"))
}

/// Who wants a drain, as in "asked for by …".
fn whose(by: Trigger) -> &'static str {
    match by {
        Trigger::Coordinator => "the coordinator",
        Trigger::GpuRecovery => "the node's agent, for a GPU that wants a reset",
        Trigger::LifecycleHook => "the Auto Scaling group, which terminates the instance",
        Trigger::Maintenance => "the node's agent, for an event that AWS announced",
        Trigger::Person => "a person",
        Trigger::Rebalance => "the node's agent, for AWS's rebalance recommendation",
        Trigger::Shutdown => "the node's agent, for the node's shutdown",
        Trigger::SpotInterruption => "the node's agent, for a spot interruption",
    }
}

fn now() -> Instant {
    Instant::from_millis(0) + SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// One line, as it happens.
fn say(node: &str, what: &str) {
    let time = crate::text::moment(now());
    println!("{}  {node}  {}", &time[11..], crate::text::clean(what));
}
