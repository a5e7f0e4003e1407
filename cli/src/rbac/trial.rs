//! Tries a token of an agent's, as one who has stolen it would: on its own node and on another. Everything that could
//! change something is a dry run; the token is kept nowhere and ends after ten minutes.

use ebb_core::drain::{EvictionOutcome, Target};
use ebb_kubernetes::eviction;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::AuthInfo;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::findings::{Known, Trial};
use super::look::{names, why};
use crate::kubernetes;

/// The least that an API server grants.
const SECONDS: i64 = 600;
/// What an agent writes. It stays as it is.
const ANNOTATION: &str = "ebb.dev/drain-progress";

/// Also whether NodeRestriction holds a node to itself.
pub(super) async fn run(
    args: &kubernetes::Args,
    client: &Client,
    namespace: &str,
    acts_as_node: bool,
) -> (Known<Trial>, Known<bool>) {
    let nodes = match Api::<Node>::all(client.clone()).list(&ListParams::default().limit(50)).await {
        Ok(nodes) => names(&nodes.items),
        Err(error) => {
            let why = why("list nodes", &error);
            return (Err(why.clone()), Err(why));
        }
    };
    let trial = steal(args, client, namespace, acts_as_node, &nodes).await;
    let restricted = in_the_name_of_a_node(args, &nodes).await.or_else(|why| match &trial {
        // As its node, nothing else stood between it and another.
        Ok(Trial { own: true, other_node: Some(false), .. }) if acts_as_node => Ok(true),
        _ => Err(why),
    });
    (trial, restricted)
}

async fn steal(
    args: &kubernetes::Args,
    client: &Client,
    namespace: &str,
    acts_as_node: bool,
    nodes: &[String],
) -> Known<Trial> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let agents = ListParams::default().labels("app.kubernetes.io/name=ebb,app.kubernetes.io/component=agent");
    let agents = pods.list(&agents).await.map_err(|error| why("list the agents' pods", &error))?.items;
    let on_node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let agent = agents.iter().find(|pod| on_node(pod).is_some() && pod.metadata.deletion_timestamp.is_none());
    let agent = agent.ok_or("no agent has a node yet")?;
    let node = on_node(agent).ok_or("no agent has a node yet")?;
    let token = token(client, namespace, agent).await.map_err(|error| why("make a token of an agent's", &error))?;

    // As the agent acts, and as a thief would also try.
    let as_node = acts_as_node.then(|| format!("system:node:{node}"));
    let agent_itself = bearer(args, &token, as_node.clone()).await?;
    let mut thieves = vec![agent_itself.clone()];
    if as_node.is_some() {
        thieves.push(bearer(args, &token, None).await?);
    }
    let own = annotates(&agent_itself, &node).await?;
    let other = nodes.iter().find(|name| **name != node);
    let elsewhere = agents.iter().find(|pod| on_node(pod).is_some_and(|name| name != node));
    let (mut other_node, mut other_pod) = (None, None);
    for thief in &thieves {
        if let Some(other) = other {
            other_node = Some(other_node == Some(true) || annotates(thief, other).await?);
        }
        if let Some(pod) = elsewhere {
            other_pod = Some(other_pod == Some(true) || evicts(thief, pod).await);
        }
    }
    Ok(Trial { own, other_node, other_pod })
}

async fn bearer(args: &kubernetes::Args, token: &str, impersonate: Option<String>) -> Known<Client> {
    let mut config = args.config().await.map_err(|error| format!("{error:#}"))?;
    config.default_retry = false;
    config.auth_info = AuthInfo { token: Some(token.to_owned().into()), impersonate, ..AuthInfo::default() };
    Client::try_from(config).map_err(|error| error.to_string())
}

/// A budget that forbids it now would not tomorrow: the bearer was let through to it.
async fn evicts(client: &Client, pod: &Pod) -> bool {
    let target = Target {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    };
    let reply = eviction::dry_run(client, &target).await;
    reply.is_ok_and(|reply| matches!(reply.outcome, EvictionOutcome::Accepted | EvictionOutcome::Blocked))
}

async fn token(client: &Client, namespace: &str, agent: &Pod) -> kube::Result<String> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let account = agent.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(agent.name_any()),
        uid: agent.uid(),
    };
    let spec = TokenRequestSpec {
        bound_object_ref: Some(bound),
        expiration_seconds: Some(SECONDS),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let reply = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
    Ok(reply.status.and_then(|status| status.token).unwrap_or_default())
}

/// Needs nobody's agent, but the right to impersonate.
async fn in_the_name_of_a_node(args: &kubernetes::Args, nodes: &[String]) -> Known<bool> {
    let [node, other, ..] = nodes else { return Err("there are no two nodes to try it with".into()) };
    let mut config = args.config().await.map_err(|error| format!("{error:#}"))?;
    config.default_retry = false;
    config.auth_info.impersonate = Some(format!("system:node:{node}"));
    config.auth_info.impersonate_groups = Some(vec!["system:nodes".into()]);
    let client = Client::try_from(config).map_err(|error| error.to_string())?;
    // What it may not at all says nothing about others.
    if !annotates(&client, node).await? {
        return Err("you may not act as a node".into());
    }
    annotates(&client, other).await.map(|reached| !reached)
}

/// Whether a dry run of what agents write is let through.
async fn annotates(client: &Client, node: &str) -> Known<bool> {
    let nodes = Api::<Node>::all(client.clone());
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": {"annotations": {ANNOTATION: "tried"}}}));
    match nodes.patch_metadata(node, &params, &patch).await {
        Ok(_) => Ok(true),
        Err(error) if kubernetes::is_forbidden(&error) => Ok(false),
        Err(error) => Err(why("change a node in a dry run", &error)),
    }
}
