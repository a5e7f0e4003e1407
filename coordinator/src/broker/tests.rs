//! The whole broker but for its TLS, before a fake API server that keeps what it is asked.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::http::{HeaderMap, Method};
use ebb_core::admission::Found;
use ebb_core::time::Instant;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use prometheus_client::registry::Registry;
use tower::{ServiceExt, service_fn};

use super::*;

const ACCOUNT: &str = "system:serviceaccount:ebb:ebb-agent";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json";

/// Every token is of the agent on node `n`; but for `nobody`, which is refused, and `down`, of which nothing is known.
struct Fake;

impl Review for Fake {
    async fn review(&self, token: &str, audience: &str) -> Result<TokenReviewStatus, String> {
        if token == "down" {
            return Err("no route".to_owned());
        }
        let extra = json!({"authentication.kubernetes.io/pod-name": ["agent"],
            "authentication.kubernetes.io/pod-uid": ["agent-uid"]});
        let user = json!({"username": ACCOUNT, "extra": extra});
        let status = json!({"authenticated": token != "nobody", "audiences": [audience], "user": user});
        serde_json::from_value(status).map_err(|error| error.to_string())
    }

    async fn find(&self, _: &str) -> Result<Found, String> {
        let made = Some(Instant::from_millis(1));
        let text = |text: &str| Some(text.to_owned());
        Ok(Found {
            pod_uid: text("agent-uid"),
            pod_made: made,
            node: text("n"),
            node_uid: text("n-uid"),
            node_made: made,
        })
    }
}

/// Method, address, content type and body of what changes something.
type Asked = Arc<Mutex<Vec<(Method, String, String, Value)>>>;

/// Knows the pods `ml/here` on node `n` and `ml/there` on node `m`; answers writes with this. `None`: it is down.
fn fake_api_server(asked: Asked, answer: Option<(u16, &'static str)>) -> Client {
    let service = service_fn(move |request: axum::http::Request<kube::client::Body>| {
        let asked = asked.clone();
        async move {
            let (head, body) = request.into_parts();
            let object = |object: Value| {
                Ok(axum::http::Response::new(kube::client::Body::from(object.to_string().into_bytes())))
            };
            let pod = |name: &str, node: &str| json!({"metadata": {"name": name, "uid": format!("{name}-uid")}, "spec": {"nodeName": node, "containers": []}});
            match (&head.method, head.uri.path().rsplit('/').next().unwrap_or_default()) {
                (&Method::GET, "here") => return object(pod("here", "n")),
                (&Method::GET, "there") => return object(pod("there", "m")),
                (&Method::GET, node) => {
                    return object(json!({"apiVersion": "meta.k8s.io/v1",
                    "kind": "PartialObjectMetadata", "metadata": {"uid": format!("{node}-uid")}}));
                }
                _ => {}
            }
            let Some((code, text)) = answer else { return Err(std::io::Error::other("connection refused")) };
            let body = to_bytes(Body::new(body), BODY_BYTES).await.map_err(std::io::Error::other)?;
            let sent = serde_json::from_slice(&body)?;
            let content_type = head.headers[header::CONTENT_TYPE].to_str().map_err(std::io::Error::other)?;
            asked.lock().unwrap().push((head.method, head.uri.to_string(), content_type.to_owned(), sent));
            let answer =
                axum::http::Response::builder().status(code).header("content-type", "x/y").header("retry-after", "7");
            answer.body(kube::client::Body::from(text.as_bytes().to_vec())).map_err(std::io::Error::other)
        }
    });
    Client::new(service, "default")
}

struct Lab {
    router: Router,
    asked: Asked,
}

impl Lab {
    fn new(answer: Option<(u16, &'static str)>) -> Self {
        let asked = Asked::default();
        let broker = Broker {
            tokens: Tokens::new(Fake, AUDIENCE, ACCOUNT.into()),
            client: fake_api_server(asked.clone(), answer),
            account: ACCOUNT.to_owned(),
            metrics: Arc::new(Metrics::register(&mut Registry::default())),
        };
        Self { router: router(broker), asked }
    }

    async fn ask(&self, token: &str, what: &str, content_type: &str, body: &str) -> (u16, HeaderMap, String) {
        let (method, path) = what.split_once(' ').unwrap();
        let request = axum::http::Request::builder().method(method).uri(path);
        let request = request.header("authorization", token).header("content-type", content_type);
        let answer: Result<_, Infallible> =
            self.router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await;
        let (head, body) = answer.unwrap().into_parts();
        let body = to_bytes(body, ANSWER_BYTES).await.unwrap();
        (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
    }

    /// What was sent to the API server since, which is nothing where the answer is our own.
    fn sent(&self) -> Vec<(Method, String, String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

const OWN: &str = "Bearer t";
const NODE: &str = "PATCH /api/v1/nodes/n?fieldManager=ebb-agent";
const EVICT: &str = "POST /api/v1/namespaces/ml/pods/here/eviction";

#[tokio::test]
async fn what_was_read_is_sent_on_and_the_answer_comes_back_as_it_is() {
    let lab = Lab::new(Some((429, "the API server's own words")));
    // Two parsers may take different ones of these.
    let (code, headers, body) =
        lab.ask(OWN, NODE, MERGE, r#"{"spec": {"unschedulable": true, "unschedulable": false}}"#).await;
    assert_eq!((code, body.as_str()), (429, "the API server's own words"));
    assert_eq!((&headers["content-type"], &headers["retry-after"]), (&"x/y".parse().unwrap(), &"7".parse().unwrap()));
    let patch = json!({"metadata": {"uid": "n-uid"}, "spec": {"unschedulable": false}});
    let address = "/api/v1/nodes/n?&fieldManager=ebb-agent";
    assert_eq!(lab.sent(), [(Method::PATCH, address.into(), MERGE.into(), patch)]);

    let status = r#"{"status": {"conditions": [{"type": "Drained", "status": "True"}]}}"#;
    lab.ask(OWN, "PATCH /api/v1/nodes/n/status", STRATEGIC, status).await;
    let sent = lab.sent();
    assert_eq!(
        (sent[0].1.as_str(), &sent[0].3["metadata"]["uid"]),
        ("/api/v1/nodes/n/status?&fieldManager=ebb-agent", &json!("n-uid"))
    );

    let eviction =
        r#"{"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {"preconditions": {"uid": "here-uid"}}}"#;
    lab.ask(OWN, &format!("{EVICT}?dryRun=All"), JSON, eviction).await;
    let sent = lab.sent();
    assert_eq!(sent[0].1, "/api/v1/namespaces/ml/pods/here/eviction?&dryRun=All");
    assert_eq!(sent[0].3["metadata"], json!({"name": "here", "namespace": "ml"}));
    assert_eq!(sent[0].3["deleteOptions"]["preconditions"]["uid"], "here-uid");

    lab.ask(
        OWN,
        "DELETE /api/v1/namespaces/ml/pods/here",
        JSON,
        r#"{"preconditions": {"uid": "here-uid"}, "dryRun": ["All"]}"#,
    )
    .await;
    let sent = lab.sent();
    assert_eq!(sent[0].3, json!({"preconditions": {"uid": "here-uid"}, "dryRun": ["All"]}));
}

#[tokio::test]
async fn what_is_refused_is_not_sent_on_and_said_as_the_api_server_says_it() {
    let lab = Lab::new(Some((200, "{}")));
    let check = async |token: &str, what: &str, content_type: &str, body: &str, code: u16, reason: &str, part: &str| {
        let (answered, headers, said) = lab.ask(token, what, content_type, body).await;
        assert_eq!(headers["content-type"], JSON, "{what}: {said}");
        let status: kube::core::Status = serde_json::from_str(&said).unwrap();
        assert_eq!((answered, status.code, status.reason.as_str()), (code, code, reason), "{what}: {said}");
        assert!(status.message.contains(part), "{part} is not in: {said}");
        assert_eq!(lab.sent(), [], "{what}");
    };
    let cordon = r#"{"spec": {"unschedulable": true}}"#;
    let node = "PATCH /api/v1/nodes/n";
    check("Bearer nobody", node, MERGE, cordon, 401, "Unauthorized", "expected audience ebb-broker").await;
    check("Basic t", node, MERGE, cordon, 401, "Unauthorized", "a bearer token").await;
    check("Bearer down", node, MERGE, cordon, 503, "ServiceUnavailable", "no route").await;
    check(OWN, "PATCH /api/v1/nodes/m", MERGE, cordon, 403, "Forbidden", "which is n").await;
    check(OWN, node, MERGE, r#"{"spec": {"taints": []}}"#, 403, "Forbidden", "spec.taints").await;
    check(OWN, "PATCH /api/v1/nodes/n?force=true", MERGE, cordon, 403, "Forbidden", "force=true").await;
    check(OWN, "PATCH /api/v1/nodes/n/status", STRATEGIC, cordon, 403, "Forbidden", "spec").await;
    check(OWN, "GET /api/v1/nodes/n", JSON, "", 403, "Forbidden", "does not write there").await;
    check(OWN, "DELETE /api/v1/nodes/n", JSON, "", 403, "Forbidden", "does not write there").await;
    check(OWN, "POST /api/v1/nodes", JSON, "{}", 403, "Forbidden", "does not write there").await;
    check(OWN, "PUT /api/v1/nodes/n/status", JSON, "{}", 403, "Forbidden", "does not write there").await;
    // As another type of patch the same body would take all other conditions away.
    let status = r#"{"status": {"conditions": []}}"#;
    check(OWN, "PATCH /api/v1/nodes/n/status", MERGE, status, 400, "BadRequest", STRATEGIC).await;
    check(OWN, node, STRATEGIC, cordon, 400, "BadRequest", MERGE).await;
    check(OWN, node, "application/apply-patch+yaml", cordon, 400, "BadRequest", MERGE).await;
    check(OWN, node, MERGE, "spec:", 400, "BadRequest", "cannot read").await;
    check(OWN, node, MERGE, &"x".repeat(BODY_BYTES + 1), 400, "BadRequest", "524288 bytes at most").await;

    let eviction = |uid: &str| {
        format!(
            r#"{{"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": {{"preconditions": {{"uid": "{uid}"}}}}}}"#
        )
    };
    let there = "POST /api/v1/namespaces/ml/pods/there/eviction";
    check(OWN, there, JSON, &eviction("there-uid"), 403, "Forbidden", "not on node n").await;
    let there = "DELETE /api/v1/namespaces/ml/pods/there";
    check(OWN, there, JSON, r#"{"preconditions": {"uid": "there-uid"}}"#, 403, "Forbidden", "not on node n").await;
    for name in ["..%2f..%2fx", "here%3fa"] {
        let there = format!("POST /api/v1/namespaces/ml/pods/{name}/eviction");
        check(OWN, &there, JSON, &eviction("u"), 403, "Forbidden", "not the name").await;
    }

    // Gone, or another of its name: the API server says that better.
    assert_eq!(lab.ask(OWN, EVICT, JSON, &eviction("of-another")).await.0, 200);
    assert_eq!(lab.sent().len(), 1);
}

#[tokio::test]
async fn an_api_server_that_is_away_or_does_not_know_us_is_said_to_be() {
    let lab = Lab::new(Some((401, "Unauthorized")));
    let (code, _, said) = lab.ask(OWN, NODE, MERGE, "{}").await;
    // Not the agent's token, which is as it should be.
    assert!(code == 503 && said.contains("the coordinator's own token"), "{said}");
    let lab = Lab::new(None);
    let (code, _, said) = lab.ask(OWN, NODE, MERGE, "{}").await;
    assert_eq!(code, 503);
    assert!(
        said.contains("cannot write this now, ask again: send it on to the API server")
            && said.contains("connection refused"),
        "{said}"
    );
}
