//! A service: gets a POST with the facts as JSON, and answers 2xx for done, 202 or 503 for later (`Retry-After` says
//! when), 409 for a veto, anything else for a failure. A 202 with a `Location` is asked there, with GET, until it says
//! something else. The same `Idempotency-Key` comes with every repetition of the POST.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ebb_config::Service;
use ebb_core::drain::{ASK_AGAIN, HookOutcome};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Map, Value};

use super::{Asked, tail};
use crate::health::chain;

/// For one answer. A hook that needs longer says 202.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_ANSWER: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the name that its certificate must carry is none")]
    ServerName(#[from] InvalidDnsNameError),
    #[error("its URL does not parse")]
    Url(#[from] hyper::http::Error),
    #[error("read {}", path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("read the certificates in {}", path.display())]
    Certificates { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("use the certificates in {}", path.display())]
    Roots { path: PathBuf, source: rustls::Error },
    #[error("read the certificates that this system trusts; `caFile` may name others")]
    System(#[source] std::io::Error),
    #[error("{0}")]
    NotReached(String),
}

pub(super) async fn run(service: Service, asked: Asked) -> HookOutcome {
    let client = match Caller::new(&service) {
        Ok(client) => client,
        Err(error) => return HookOutcome::Failed(chain(&error)),
    };
    let mut place = None;
    loop {
        let (answer, after) = match client.ask(place.as_ref(), &asked).await {
            Ok(response) => {
                let after = retry_after(response.headers());
                if response.status() == StatusCode::ACCEPTED
                    && let Some(location) = response.headers().get(LOCATION)
                {
                    match client.beside(location.to_str().unwrap_or_default()) {
                        Some(there) => place = Some(there),
                        None => return HookOutcome::Failed(format!("{location:?} is not a place of {}", service.url)),
                    }
                }
                (outcome(response, place.is_some()).await, after)
            }
            Err(Error::NotReached(why)) => {
                tracing::warn!(url = service.url, error = why, "hook not reached");
                // Whoever does not answer may do so later; for how long that is tried, its timeout says.
                (Answer::Unavailable(why), None)
            }
            Err(error) => return HookOutcome::Failed(chain(&error)),
        };
        match answer {
            Answer::Is(outcome) => return outcome,
            Answer::Later(_) | Answer::Unavailable(_) if place.is_some() => {
                tokio::time::sleep(after.unwrap_or(ASK_AGAIN)).await;
            }
            Answer::Later(why) => return HookOutcome::Later { after, why },
            Answer::Unavailable(why) => return HookOutcome::Unavailable { after, why },
            Answer::Lost => return HookOutcome::Later { after, why: String::new() },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Is(HookOutcome),
    Later(String),
    Unavailable(String),
    /// It no longer knows what it was asked: it is to be asked again from the beginning.
    Lost,
}

struct Caller<'a> {
    service: &'a Service,
    url: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl<'a> Caller<'a> {
    fn new(service: &'a Service) -> Result<Self, Error> {
        let url: Uri = service.url.parse().map_err(hyper::http::Error::from)?;
        let builder = HttpsConnectorBuilder::new();
        let builder = match &service.ca_file {
            Some(path) => builder.with_tls_config(trusting(path)?),
            // What the system trusts is read for a service that shows a certificate only.
            None if url.scheme_str() == Some("https") => builder.with_native_roots().map_err(Error::System)?,
            None => builder.with_tls_config(
                ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
            ),
        };
        let builder = builder.https_or_http();
        let builder = match &service.server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name.clone().try_into()?)),
            None => builder,
        };
        let connector = builder.enable_http1().enable_http2().build();
        Ok(Self { service, url, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Asks the service; where it has named a place, there.
    async fn ask(&self, place: Option<&Uri>, asked: &Asked) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder().uri(place.unwrap_or(&self.url));
        if let Some(path) = &self.service.token_file {
            let token = tokio::fs::read_to_string(path).await;
            let token = token.map_err(|source| Error::Token { path: path.clone(), source })?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = if place.is_some() {
            request.body(Full::default())?
        } else {
            let facts: Map<String, Value> =
                asked.facts().into_iter().map(|(fact, value)| (fact.into(), value.into())).collect();
            request
                .method(Method::POST)
                .header(CONTENT_TYPE, "application/json")
                .header("idempotency-key", format!("{}/{}", asked.about.id, asked.phase.name()))
                .body(Full::new(Bytes::from(Value::Object(facts).to_string())))?
        };
        match tokio::time::timeout(PATIENCE, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| Error::NotReached(chain(&error))),
            Err(_) => Err(Error::NotReached(format!("no answer in {PATIENCE:?}"))),
        }
    }

    /// A place of this very service: no other is to be shown its token.
    fn beside(&self, location: &str) -> Option<Uri> {
        let place: Uri = location.parse().ok()?;
        let mut parts = place.into_parts();
        let own = self.url.clone().into_parts();
        if parts.authority.is_none() {
            (parts.scheme, parts.authority) = (own.scheme.clone(), own.authority.clone());
        }
        ((&parts.scheme, &parts.authority) == (&own.scheme, &own.authority)).then(|| Uri::from_parts(parts).ok())?
    }
}

fn trusting(path: &Path) -> Result<ClientConfig, Error> {
    let read = |source| Error::Certificates { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(read)? {
        let use_it = roots.add(certificate.map_err(read)?);
        use_it.map_err(|source| Error::Roots { path: path.to_owned(), source })?;
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

async fn outcome(response: Response<Incoming>, has_place: bool) -> Answer {
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect();
    let body = tokio::time::timeout(PATIENCE, body).await;
    let said = body.ok().and_then(Result::ok).map(|body| tail(&body.to_bytes())).unwrap_or_default();
    Answer::Is(match status {
        StatusCode::ACCEPTED => return Answer::Later(said),
        StatusCode::SERVICE_UNAVAILABLE => return Answer::Unavailable(said),
        StatusCode::NOT_FOUND | StatusCode::GONE if has_place => return Answer::Lost,
        StatusCode::CONFLICT => HookOutcome::Veto(said),
        status if status.is_success() => HookOutcome::Done,
        status if said.is_empty() => HookOutcome::Failed(status.to_string()),
        status => HookOutcome::Failed(format!("{status}: {said}")),
    })
}

/// In seconds; the form with a date is nobody's who means a pause.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use ebb_core::drain::HookPhase;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::tests::asked;
    use super::*;

    const END: &[u8] = b"\r\n\r\n";
    const LATER: &str = "HTTP/1.1 202 Accepted\r\nlocation: /jobs/3\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";

    /// What a service was sent that gives these answers, and what they meant.
    async fn served(answers: &[&'static str]) -> (Vec<String>, HookOutcome) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ebb", listener.local_addr().unwrap());
        let answers = answers.to_vec();
        let service = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                requests.push(answered(stream, answer).await);
            }
            requests
        });
        let outcome = run(Service { url, ..Service::default() }, asked(HookPhase::PostDrain)).await;
        (service.await.unwrap(), outcome)
    }

    async fn answered(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
        let mut request = Vec::new();
        let is_whole =
            |request: &[u8]| request.ends_with(b"}") || request.starts_with(b"GET") && request.ends_with(END);
        while !is_whole(&request) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(request).unwrap()
    }

    #[tokio::test]
    async fn the_status_is_the_answer_and_the_body_the_reason() {
        let after = Some(Duration::from_secs(7));
        let later = |after| HookOutcome::Later { after, why: String::new() };
        for (answer, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", HookOutcome::Done),
            ("HTTP/1.1 202 Accepted\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", later(after)),
            ("HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n", later(None)),
            (
                "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 4\r\n\r\nbusy",
                HookOutcome::Unavailable { after, why: "busy".into() },
            ),
            ("HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\n\r\nbusy", HookOutcome::Veto("busy".into())),
            (
                "HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\nbroken",
                HookOutcome::Failed("500 Internal Server Error: broken".into()),
            ),
        ] {
            assert_eq!(served(&[answer]).await.1, expected, "{answer}");
        }
    }

    #[tokio::test]
    async fn a_service_is_told_the_facts_and_can_know_a_repetition() {
        let (request, _) = served(&["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        let (head, body) = request[0].split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ebb HTTP/1.1\r\n") && head.contains("idempotency-key: d/post-drain"), "{head}");
        let facts: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&facts["node"], &facts["trigger"]), (&"node-1".into(), &"spot_interruption".into()));
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_may_come_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let service = Service { url, ..Service::default() };
        let outcome = run(service, asked(HookPhase::PreDrain)).await;
        assert!(matches!(outcome, HookOutcome::Unavailable { after: None, .. }), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_service_that_names_a_place_is_asked_there_until_it_has_ended() {
        let again = "HTTP/1.1 503 Busy\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
        let veto = "HTTP/1.1 409 Conflict\r\ncontent-length: 4\r\n\r\nbusy";
        let (requests, outcome) = served(&[LATER, LATER, again, veto]).await;
        assert_eq!(outcome, HookOutcome::Veto("busy".into()));
        let lines: Vec<_> = requests.iter().map(|request| request.lines().next().unwrap()).collect();
        let get = "GET /jobs/3 HTTP/1.1";
        assert_eq!(lines, ["POST /ebb HTTP/1.1", get, get, get]);
        // One that has forgotten is asked anew.
        let gone = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        let outcome = served(&[LATER, gone]).await.1;
        assert!(matches!(outcome, HookOutcome::Later { after: None, .. }), "{outcome:?}");
        let elsewhere = "HTTP/1.1 202 Accepted\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\r\n";
        let HookOutcome::Failed(why) = served(&[elsewhere]).await.1 else { panic!() };
        assert!(why.starts_with("\"http://example.com/\" is not a place of http://127.0.0.1:"), "{why}");
    }

    #[tokio::test]
    async fn a_service_must_show_a_certificate_that_is_trusted_before_it_gets_the_token() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            Some(path)
        };
        let [own, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![own.cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Service {
            url: format!("https://{}/ebb", listener.local_addr().unwrap()),
            ca_file: file("ca.crt", &own.cert.pem()),
            token_file: file("token", "secret\n"),
            server_name: Some("localhost".into()),
        };
        let served = tokio::spawn(async move {
            let refused = acceptor.accept(listener.accept().await.unwrap().0).await.is_err();
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            (refused, answered(stream, "HTTP/1.1 204 No Content\r\n\r\n").await)
        });
        let distrusting = Service { ca_file: file("other.crt", &other.cert.pem()), ..service.clone() };
        let outcome = run(distrusting, asked(HookPhase::PreDrain)).await;
        assert!(matches!(outcome, HookOutcome::Unavailable { .. }), "{outcome:?}");
        assert_eq!(run(service.clone(), asked(HookPhase::PreDrain)).await, HookOutcome::Done);
        let (refused, request) = served.await.unwrap();
        assert!(refused && request.contains("authorization: Bearer secret\r\n"), "{request}");
        let HookOutcome::Failed(why) =
            run(Service { ca_file: Some("/absent".into()), ..service }, asked(HookPhase::PreDrain)).await
        else {
            panic!()
        };
        assert!(why.starts_with("read the certificates in /absent: "), "{why}");
    }

    #[tokio::test]
    async fn the_coordinator_is_asked_by_http2_beside_its_grpc() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let name = "ebb-coordinator.ebb.svc".to_owned();
        let made = rcgen::generate_simple_self_signed([name.clone()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.crt");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let answer = async |version: hyper::Version, facts: axum::Json<Value>| {
            let said = format!("{version:?} {}", facts["node"].as_str().unwrap());
            (StatusCode::ACCEPTED, [(RETRY_AFTER, "1")], said)
        };
        let router = axum::Router::new().route("/hooks/ray", axum::routing::post(answer));
        let identity = tonic::transport::Identity::from_pem(made.cert.pem(), made.signing_key.serialize_pem());
        let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
        // As the coordinator serves it.
        let server = tonic::transport::Server::builder().tls_config(tls).unwrap().add_routes(router.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/hooks/ray", listener.local_addr().unwrap());
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let service = Service { url, ca_file: Some(ca_file), token_file: None, server_name: Some(name) };
        let outcome = run(service, asked(HookPhase::PreTier)).await;
        let after = Some(Duration::from_secs(1));
        assert_eq!(outcome, HookOutcome::Later { after, why: "HTTP/2.0 node-1".into() });
    }
}
