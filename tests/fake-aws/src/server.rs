//! The HTTP edge: requests in, answers out, faults in between, a line in the log for each. Knows the clock; decides
//! nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::error::ApiError;
use crate::ids::Ids;
use crate::query::Params;
use crate::service::{Service, Timing};
use crate::xml;

/// A fake account and what is around it.
pub struct Lab {
    service: Mutex<Service>,
    ids: Mutex<Ids>,
    log: Mutex<Option<File>>,
    /// What each call was answered last, for those that are to be answered stale.
    answered: Mutex<HashMap<(String, Params), Value>>,
    /// Told whenever the groups may have changed.
    changes: watch::Sender<()>,
}

/// Instead of an answer: the connection is closed. What hyper does when a service fails.
#[derive(Debug, thiserror::Error)]
#[error("the connection is dropped, as the lab asked")]
struct Dropped;

type Answer = Response<Full<Bytes>>;

impl Lab {
    pub fn new(service: Service, log: Option<File>) -> Self {
        let seed = Timestamp::now().as_nanosecond() as u64;
        Self {
            service: Mutex::new(service),
            ids: Mutex::new(Ids::new(seed)),
            log: Mutex::new(log),
            answered: Mutex::default(),
            changes: watch::Sender::new(()),
        }
    }

    pub fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().expect("nobody panics while holding it")
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

/// Serves until the listener fails; what is due meanwhile happens.
pub async fn serve(listener: TcpListener, lab: Arc<Lab>) -> std::io::Result<()> {
    tokio::spawn(keep_time(Arc::clone(&lab)));
    loop {
        let (stream, _) = listener.accept().await?;
        // An answer of two packets would wait for the client's delayed acknowledgement.
        stream.set_nodelay(true)?;
        let lab = Arc::clone(&lab);
        tokio::spawn(async move {
            let service = service_fn(|request| respond(Arc::clone(&lab), request));
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// Wakes the service when it wants to be woken.
async fn keep_time(lab: Arc<Lab>) -> Infallible {
    let mut changes = lab.changes();
    loop {
        changes.mark_unchanged();
        let wakeup = {
            let mut service = lab.service();
            if service.advance(Timestamp::now()) {
                lab.changes.send_replace(());
            }
            service.next_wakeup()
        };
        let wait = wakeup.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        tokio::select! {
            () = sleep_or_never(wait) => {}
            // The sender is the lab's own, so that this is a change.
            _ = changes.changed() => {}
        }
    }
}

async fn sleep_or_never(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn respond(lab: Arc<Lab>, request: Request<Incoming>) -> Result<Answer, Dropped> {
    let (head, body) = request.into_parts();
    // A client that is gone before its request was whole gets no answer.
    let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    if let Some(path) = head.uri.path().strip_prefix("/_lab/") {
        let (status, reply) = lab.control(&head.method, path, &body);
        return Ok(answer(status, "application/json", "", reply.to_string()));
    }
    let authorization = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    lab.api(authorization, &body).await
}

impl Lab {
    async fn api(&self, authorization: &str, body: &[u8]) -> Result<Answer, Dropped> {
        let (arrived, start) = (Timestamp::now(), Instant::now());
        let mut params = Params::parse(body);
        let action = params.take("Action").unwrap_or_default();
        let version = params.take("Version").unwrap_or_default();
        let (service, region) = scope(authorization).unwrap_or(("unknown", ""));
        let fault = self.service().faults.call(arrived, &action, params.text("AutoScalingGroupName"));
        if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay_ms) {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let refused = fault.as_ref().and_then(|fault| fault.error());
        let dropped = fault.as_ref().is_some_and(|fault| fault.drop);
        let takes_effect = fault.as_ref().is_none_or(|fault| fault.effect || (refused.is_none() && !dropped));
        let mut outcome = Ok(Value::Null);
        if takes_effect {
            let mut account = self.service();
            outcome = check(service, region, &version, account.region())
                .and_then(|()| account.call(Timestamp::now(), &action, &params));
            self.changes.send_replace(());
        }
        if let Some(error) = refused {
            outcome = Err(error);
        } else if takes_effect && action.starts_with("Describe") {
            let stale = fault.as_ref().is_some_and(|fault| fault.stale);
            outcome = outcome.map(|fresh| self.remember(&action, &params, fresh, stale));
        }
        let status = match &outcome {
            _ if dropped => 0,
            Ok(_) => 200,
            Err(error) => error.status,
        };
        self.note(&json!({
            "t": arrived.as_millisecond(),
            "service": service,
            "action": action,
            "params": params.as_map(),
            "status": status,
            "ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "fault": fault.is_some(),
        }));
        if dropped {
            return Err(Dropped);
        }
        let request_id = self.ids.lock().expect("nobody panics while holding it").uuid();
        let text = match &outcome {
            Ok(result) => xml::answer(service, &action, result, &request_id),
            Err(error) => xml::error(service, error, &request_id),
        };
        Ok(answer(status, "text/xml", &request_id, text))
    }

    /// What is answered to a call that reads, which is not what there is if it is to be stale.
    fn remember(&self, action: &str, params: &Params, fresh: Value, stale: bool) -> Value {
        let mut answered = self.answered.lock().expect("nobody panics while holding it");
        let call = (action.to_owned(), params.clone());
        if stale && let Some(last) = answered.get(&call) {
            return last.clone();
        }
        answered.insert(call, fresh.clone());
        fresh
    }

    /// Written before the answer is: whoever has that finds the line.
    fn note(&self, line: &Value) {
        if let Some(log) = self.log.lock().expect("nobody panics while holding it").as_mut()
            && let Err(error) = writeln!(log, "{line}")
        {
            tracing::error!(%error, "a call could not be logged");
        }
    }

    /// The lab's own paths, below `/_lab/`.
    fn control(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let mut service = self.service();
        let bad = |problem: String| (400, json!(problem));
        match (method, path.split_once('/').unwrap_or((path, ""))) {
            (&Method::GET, ("asg", "")) => (200, json!(service.groups())),
            (&Method::GET, ("faults", "")) => (200, json!(service.faults.rules())),
            (&Method::POST, ("faults", "")) => match serde_json::from_slice(body) {
                Ok(rules) => match service.faults.set(rules) {
                    Ok(()) => (200, json!(service.faults.rules())),
                    Err(problem) => bad(problem),
                },
                Err(problem) => bad(problem.to_string()),
            },
            (&Method::DELETE, ("faults", "")) => {
                let cleared = service.faults.set(Vec::new());
                (200, json!(cleared.map(|()| service.faults.rules())))
            }
            (&Method::GET, ("timing", "")) => (200, json!(service.timing)),
            (&Method::POST, ("timing", "")) => match serde_json::from_slice::<Timing>(body) {
                Ok(timing) => {
                    service.timing = timing;
                    (200, json!(timing))
                }
                Err(problem) => bad(problem.to_string()),
            },
            (&Method::DELETE, ("instances", id)) => {
                if !service.lose(Timestamp::now(), id) {
                    return (404, json!(format!("no instance {id}")));
                }
                self.changes.send_replace(());
                (200, json!(id))
            }
            _ => (404, json!(format!("no {method} /_lab/{path}: see the head of tests/fake-aws/src/lib.rs"))),
        }
    }
}

/// Service and region, from the signature's scope: `Credential=KEY/DATE/REGION/SERVICE/aws4_request`. The Query protocol
/// names the service nowhere else.
fn scope(authorization: &str) -> Option<(&str, &str)> {
    let (_, credential) = authorization.split_once("Credential=")?;
    let mut words = credential.split(',').next()?.split('/').skip(2);
    let (region, service) = (words.next()?, words.next()?);
    Some((service, region))
}

/// What AWS looks at before it looks at a call.
fn check(service: &str, region: &str, version: &str, own_region: &str) -> Result<(), ApiError> {
    match service {
        "unknown" => Err(ApiError::new("MissingAuthenticationToken", "Missing Authentication Token")),
        _ if region != own_region => Err(ApiError::new(
            "SignatureDoesNotMatch",
            format!("Credential should be scoped to a valid region: {own_region}, not {region}."),
        )),
        "autoscaling" if version != "2011-01-01" => {
            Err(ApiError::new("InvalidAction", format!("There is no version {version} of the Auto Scaling API")))
        }
        "autoscaling" | "ec2" => Ok(()),
        other => Err(ApiError::new("InvalidAction", format!("This is a fake, and plays no service {other}"))),
    }
}

fn answer(status: u16, kind: &str, request_id: &str, body: String) -> Answer {
    let mut answer = Response::builder()
        .status(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR))
        .header(CONTENT_TYPE, kind);
    if !request_id.is_empty() {
        answer = answer.header("x-amzn-requestid", request_id);
    }
    answer.body(Full::from(body)).expect("a status, two headers and a body make an answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_and_region_are_read_from_the_signature() {
        let header = "AWS4-HMAC-SHA256 Credential=lab/20260101/us-west-2/autoscaling/aws4_request, SignedHeaders=host";
        assert_eq!(scope(header), Some(("autoscaling", "us-west-2")));
        assert_eq!(scope(""), None);
        assert_eq!(check("unknown", "", "", "us-west-2").unwrap_err().status, 403);
        assert_eq!(
            check("autoscaling", "eu-west-1", "2011-01-01", "us-west-2").unwrap_err().code,
            "SignatureDoesNotMatch"
        );
        assert_eq!(check("sqs", "us-west-2", "", "us-west-2").unwrap_err().code, "InvalidAction");
        assert_eq!(check("autoscaling", "us-west-2", "2011-01-01", "us-west-2"), Ok(()));
    }
}
