//! Answers the API server, which asks before an agent evicts a pod where agents act as themselves (chart value
//! `agent.rights: admission`). What is allowed is said by `core::admission`; here it is only looked up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use ebb_core::admission::{Eviction, Found, NODE_NAME_CLAIM, NODE_UID_CLAIM, may_evict};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::tls::Certificate;

/// Where the chart's webhook asks.
const PATH: &str = "/evictions";
/// API servers keep connections open and there are a handful of them; more is somebody else's mistake.
const CONNECTIONS: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that has not sent its request's head by then holds a place that others need.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// Less than the webhook's own 5 s, so that what is wrong is said.
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);

/// Serves until `stop`, from the first certificate on.
pub(crate) async fn serve(
    address: SocketAddr,
    client: Client,
    account: String,
    mut certificates: watch::Receiver<Option<Certificate>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let asked = Asked { client, account: account.into() };
    let service = TowerToHyperService::new(Router::new().route(PATH, post(answer)).with_state(asked));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        certificate = certificates.wait_for(Option::is_some) => drop(certificate?),
    }
    let mut acceptor = acceptor(&certificates)?;
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = certificates.changed() => {
                changed?;
                // Connections that are open go on with the one they began with.
                acceptor = self::acceptor(&certificates)?;
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or a client that left early: either passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, service, stop) = (acceptor.clone(), service.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "connection of the API server ended");
                },
            }
        });
    }
}

fn acceptor(certificates: &watch::Receiver<Option<Certificate>>) -> anyhow::Result<TlsAcceptor> {
    let certificate = certificates.borrow().clone().expect("it was waited for");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).context("read the certificate's key")?;
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.context("read the certificate")?, key)
        .context("use the certificate")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[derive(Clone)]
struct Asked {
    client: Client,
    /// The agent's full user name.
    account: Arc<str>,
}

/// Of an `AdmissionReview` (admission.k8s.io/v1) what is looked at.
#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    user_info: k8s_openapi::api::authentication::v1::UserInfo,
    #[serde(default)]
    object: Value,
}

impl Request {
    fn eviction(&self) -> Eviction {
        // One value each; several would be nobody's claims.
        let claim = |key| match self.user_info.extra.as_ref()?.get(key)?.as_slice() {
            [value] if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        Eviction {
            username: self.user_info.username.clone().unwrap_or_default(),
            node: claim(NODE_NAME_CLAIM),
            node_uid: claim(NODE_UID_CLAIM),
            pod_uid: self.object["deleteOptions"]["preconditions"]["uid"].as_str().map(str::to_owned),
        }
    }
}

async fn answer(State(asked): State<Asked>, Json(review): Json<Review>) -> Response {
    let request = review.request;
    let eviction = request.eviction();
    let looked = timeout(LOOK_TIMEOUT, look(&asked.client, &request)).await;
    let looked = looked.map_err(|_| "no reply in time".to_owned());
    let found = match looked.and_then(|looked| looked.map_err(|error| error.to_string())) {
        Ok(found) => found,
        Err(error) => {
            // Neither yes nor no: the API server refuses by the webhook's failure policy, and the agent asks again.
            tracing::warn!(namespace = request.namespace, pod = request.name, error, "eviction not judged");
            return (StatusCode::SERVICE_UNAVAILABLE, format!("look the pod up: {error}")).into_response();
        }
    };
    let allowed = may_evict(&asked.account, &eviction, &found);
    let mut response = json!({"uid": request.uid, "allowed": allowed.is_ok()});
    if let Err(refusal) = allowed {
        let node = eviction.node;
        tracing::warn!(namespace = request.namespace, pod = request.name, node, %refusal, "eviction refused");
        response["status"] = json!({"code": 403, "reason": "Forbidden", "message": refusal.to_string()});
    }
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})).into_response()
}

/// From the API server itself: what our watches say may be older than the question.
async fn look(client: &Client, request: &Request) -> kube::Result<Found> {
    let pods = Api::<Pod>::namespaced(client.clone(), &request.namespace);
    let Some(pod) = pods.get_opt(&request.name).await? else { return Ok(Found::default()) };
    let node = pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty());
    let node_uid = match &node {
        Some(node) => {
            let node = Api::<Node>::all(client.clone()).get_metadata_opt(node).await?;
            node.and_then(|node| node.metadata.uid)
        }
        None => None,
    };
    Ok(Found { pod_uid: pod.metadata.uid, node, node_uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl Fn(&mut Value)) -> Eviction {
        let mut review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "r", "namespace": "ml", "name": "train-0",
                "userInfo": {"username": "agent", "extra": {NODE_NAME_CLAIM: ["n"], NODE_UID_CLAIM: ["n-uid"]}},
                "object": {"kind": "Eviction", "deleteOptions": {"preconditions": {"uid": "p-uid"}}},
            },
        });
        change(&mut review["request"]);
        serde_json::from_value::<Review>(review).unwrap().request.eviction()
    }

    #[test]
    fn a_review_is_read_and_what_is_no_single_claim_is_none() {
        let text = |text: &str| Some(text.to_owned());
        let expected =
            Eviction { username: "agent".into(), node: text("n"), node_uid: text("n-uid"), pod_uid: text("p-uid") };
        assert_eq!(read(|_| {}), expected);
        let no_node = || Eviction { node: None, ..expected.clone() };
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!([])), no_node());
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!([""])), no_node());
        assert_eq!(read(|it| it["userInfo"]["extra"][NODE_NAME_CLAIM] = json!(["n", "m"])), no_node());
        let unbound = Eviction { node_uid: None, ..no_node() };
        assert_eq!(read(|it| it["userInfo"]["extra"] = Value::Null), unbound);
        let no_uid = Eviction { pod_uid: None, ..expected.clone() };
        assert_eq!(read(|it| it["object"] = json!({"kind": "Eviction"})), no_uid);
        assert_eq!(read(|it| it["object"] = Value::Null), no_uid);
    }
}
