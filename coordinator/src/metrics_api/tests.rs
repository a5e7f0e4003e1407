//! Both APIs but for their TLS, before a fake API server that reviews access: user `hpa` may read all, nobody else anything.

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use ebb_core::kubernetes;
use ebb_core::units::Permille;
use ebb_core::usage::{Amount, PodUsage, Signals};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use tokio::sync::mpsc;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::driver::Query;

/// What was asked of the API server about resources.
type Reviewed = Arc<Mutex<Vec<Value>>>;

fn fake_api_server(reviewed: Reviewed) -> Client {
    let service = service_fn(move |request: axum::http::Request<kube::client::Body>| {
        let reviewed = reviewed.clone();
        async move {
            let mut review: Value =
                serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
            reviewed.lock().unwrap().push(review["spec"]["resourceAttributes"].clone());
            review["status"] = json!({"allowed": review["spec"]["user"] == "hpa"});
            let body = kube::client::Body::from(review.to_string().into_bytes());
            Ok::<_, Infallible>(axum::http::Response::new(body))
        }
    });
    Client::new(service, "default")
}

struct Bench {
    router: Router,
    reviewed: Reviewed,
    _front_proxy: watch::Sender<Option<FrontProxy>>,
}

impl Bench {
    /// Of pods `ml/a` and `ml/b` on one node, the first of which has a GPU; 7 requests wait in Ray cluster `ml/train`.
    fn new() -> Self {
        let (known, clock) = (Known::new(true), Clock::start());
        let node = kubernetes::Node { name: "n".into(), uid: "n".into(), ..kubernetes::Node::default() };
        known.note(&Event::NodeApplied(node));
        for name in ["a", "b"] {
            let labels = [("app".to_owned(), name.to_owned())].into();
            let (uid, namespace, name) = (name.to_owned(), "ml".to_owned(), name.to_owned());
            let node = Some("n".to_owned());
            known.note(&Event::PodApplied(kubernetes::Pod {
                uid,
                namespace,
                name,
                labels,
                node,
                ..kubernetes::Pod::default()
            }));
        }
        let window = Duration::from_secs(10);
        let pod = |uid: &str, gpu_busy| PodUsage {
            uid: uid.into(),
            at: clock.now(),
            window,
            containers: vec![("work".into(), Amount { cpu_nanocores: 5, memory_bytes: 6 })],
            signals: Some(Signals { window, gpu_busy, run_queue_wait: Some(0), ..Signals::default() }),
        };
        let pods = vec![pod("a", Permille::new(900)), pod("b", None)];
        known.take(clock, "n", (clock.now(), 1), NodeUsage { node: None, pods });

        let config_map: ConfigMap = serde_json::from_value(json!({"data": {
            "requestheader-client-ca-file": "CA", "requestheader-username-headers": r#"["X-Remote-User"]"#,
        }}))
        .unwrap();
        let (_front_proxy, front_proxy) = watch::channel(Some(FrontProxy::read(&config_map).unwrap()));
        let (queries, mut asked) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(query) = asked.recv().await {
                let Query::RayWaiting(reply) = query else { panic!("nothing else is asked") };
                reply.send([("ml/train".to_owned(), (clock.now(), 7))].into()).unwrap();
            }
        });
        let reviewed = Reviewed::default();
        let client = fake_api_server(reviewed.clone());
        let apis = [MetricsApi::Resource, MetricsApi::Custom];
        let router = router(&apis, client, known, queries, clock, front_proxy);
        Self { router, reviewed, _front_proxy }
    }

    async fn ask(&self, user: &str, path: &str) -> (u16, Value) {
        let request = Request::get(path).header("X-Remote-User", user);
        let request = request.extension(Peer(Some("front-proxy".into()))).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_else(|_| bytes.to_vec().into()))
    }

    /// Names of the objects and their values.
    async fn values(&self, path: &str) -> Vec<(String, String)> {
        let (status, list) = self.ask("hpa", &format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{path}")).await;
        assert_eq!((status, &list["kind"]), (200, &"MetricValueList".into()), "{path}: {list}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| (text(&item["describedObject"]["name"]), text(&item["value"]))).collect()
    }
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn custom_metrics_are_found_as_the_hpa_asks_for_them() {
    let bench = Bench::new();
    let check = async |path: &str, expected: &[(&str, &str)]| {
        assert_eq!(bench.values(path).await, pairs(expected), "{path}");
    };
    // client-go writes the star so.
    check("ml/pods/%2A/gpu_busy_ratio?labelSelector=app+in+(a,b)", &[("a", "900m")]).await;
    let review = bench.reviewed.lock().unwrap()[0].clone();
    let expected = json!({
        "group": "custom.metrics.k8s.io", "version": "v1beta2", "namespace": "ml", "resource": "pods", "name": "*",
        "subresource": "gpu_busy_ratio", "verb": "get",
    });
    assert_eq!(review, expected);
    check("ml/pods/*/cpu_run_queue_wait_ratio", &[("a", "0"), ("b", "0")]).await;
    check("ml/pods/*/cpu_run_queue_wait_ratio?labelSelector=app%3Db", &[("b", "0")]).await;
    check("ml/pods/*/cpu_run_queue_wait_ratio?metricLabelSelector=gpu%3D0", &[]).await;
    check("other/pods/*/gpu_busy_ratio", &[]).await;
    check("ml/pods/a/DCGM_FI_DEV_GPU_UTIL", &[("a", "90")]).await;
    check("ml/rayclusters.ray.io/train/ray_waiting_requests", &[("train", "7")]).await;
    check("ml/rayclusters.ray.io/*/ray_waiting_requests", &[("train", "7")]).await;
}

#[tokio::test]
async fn what_is_not_known_is_not_found_and_never_zero() {
    let bench = Bench::new();
    for path in [
        "ml/pods/b/gpu_busy_ratio",
        "ml/pods/none/gpu_busy_ratio",
        "ml/pods/*/requests_per_second",
        "ml/services/web/gpu_busy_ratio",
        "ml/rayclusters.ray.io/other/ray_waiting_requests",
        "other/rayclusters.ray.io/train/ray_waiting_requests",
        "ml/rayclusters.ray.io/train/gpu_busy_ratio",
    ] {
        let path = format!("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{path}");
        let (status, text) = bench.ask("hpa", &path).await;
        assert_eq!((status, &text["reason"]), (404, &"NotFound".into()), "{path}: {text}");
    }
}

#[tokio::test]
async fn who_may_not_read_is_refused_and_what_everybody_may_read_is_shown() {
    let bench = Bench::new();
    for path in [
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ml/pods/*/gpu_busy_ratio",
        "/apis/metrics.k8s.io/v1beta1/pods",
        "/apis",
    ] {
        let (status, text) = bench.ask("jane", path).await;
        assert_eq!((status, &text["reason"]), (403, &"Forbidden".into()), "{path}");
        assert_eq!(bench.ask("hpa", path).await.0, 200, "{path}");
    }
    let (_, groups) = bench.ask("hpa", "/apis").await;
    let names: Vec<_> = groups["groups"].as_array().unwrap().iter().map(|group| group["name"].clone()).collect();
    assert_eq!(names, ["metrics.k8s.io", "custom.metrics.k8s.io"]);
    let (status, root) = bench.ask("", "/openapi/v3").await;
    let url = root["paths"]["apis/metrics.k8s.io/v1beta1"]["serverRelativeURL"].as_str().unwrap();
    assert_eq!((status, bench.ask("", url).await.0, bench.ask("", "/openapi/v2").await.0), (200, 200, 404));
}

#[tokio::test]
async fn lists_and_tables_are_whole() {
    let bench = Bench::new();
    let (_, list) = bench.ask("hpa", "/apis/metrics.k8s.io/v1beta1/namespaces/ml/pods").await;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&"PodMetricsList".into(), &"metrics.k8s.io/v1beta1".into()));
    assert!(list["columnDefinitions"].is_null() && list["rows"].is_null(), "{list}");
    assert_eq!(list["items"][1]["containers"], json!([{"name": "work", "usage": {"cpu": "5n", "memory": "6"}}]));
    let as_table = Request::get("/apis/metrics.k8s.io/v1beta1/namespaces/ml/pods")
        .header("X-Remote-User", "hpa")
        .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .extension(Peer(Some("front-proxy".into())));
    let response = bench.router.clone().oneshot(as_table.body(Body::empty()).unwrap()).await.unwrap();
    let table: Value =
        serde_json::from_slice(&axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap()).unwrap();
    assert_eq!((&table["kind"], table["rows"].as_array().unwrap().len()), (&"Table".into(), 2));
    assert_eq!((table["columnDefinitions"].as_array().unwrap().len(), &table["items"]), (4, &Value::Null));
}
