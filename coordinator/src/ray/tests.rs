//! The questions to a head, and what is told of its answers.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use ebb_core::ray::{ClientCertificate, Cluster, DrainReason, Drained, Launches, NodeState, Problem};
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::fake_head::{FakeHead, Fault};
use super::*;

fn head(address: SocketAddr, token_file: Option<PathBuf>) -> Head {
    let cluster = Cluster { address: address.to_string(), token_file, ..Cluster::default() };
    let metrics = Arc::new(Metrics::register(&mut Registry::default()));
    Head { name: "ml/train".into(), gcs: Arc::new(Gcs::new(cluster)), metrics }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Answer {
    let event = timeout(Duration::from_secs(30), events.recv()).await.unwrap().unwrap();
    let Event::Ray { cluster, answer } = event else { panic!("{event:?}") };
    assert_eq!(cluster, "ml/train");
    answer
}

/// What the head said before the change may still be under way.
async fn becomes(events: &mut mpsc::Receiver<Event>, is_it: impl Fn(&Answer) -> bool) {
    for _ in 0..3 {
        if is_it(&next(events).await) {
            return;
        }
    }
    panic!("not within three answers");
}

#[tokio::test]
async fn each_fault_of_a_head_is_told_once_and_its_end_as_well() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "right\n").unwrap();
    fake.set(|state| state.token = Some("right"));
    let (inbox, mut events) = mpsc::channel(8);
    let (rest, _kept) = mpsc::channel(8);
    let standing = Standing::new(rest);
    let asking = tokio::spawn(head(address, Some(token.clone())).keep_asking(standing.clone(), inbox));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.0.lock().unwrap().asked, 0, "only the leader asks");
    standing.set_leading(true).await;
    let is_read = |answer: &Answer| matches!(answer, Answer::Read(_));
    let Answer::Read(reading) = next(&mut events).await else { panic!("nothing is wrong") };
    assert_eq!(reading.nodes["01"].state, NodeState::Idle { millis: 1000 });

    let cases = [(Fault::Nonsense, Problem::Malformed), (Fault::Silence, Problem::Late)];
    for (fault, problem) in cases {
        fake.set(|state| state.fault = fault);
        assert_eq!(next(&mut events).await, Answer::Unreadable(problem), "{fault:?}");
        fake.set(|state| state.fault = Fault::None);
        assert!(is_read(&next(&mut events).await), "{fault:?}");
    }
    fs::write(&token, "wrong").unwrap();
    assert_eq!(next(&mut events).await, Answer::Unreadable(Problem::Unauthenticated));
    fs::write(&token, "right").unwrap();
    assert!(is_read(&next(&mut events).await), "the file is read again");
    fs::remove_file(&token).unwrap();
    becomes(&mut events, |answer| *answer == Answer::Unreadable(Problem::Unauthenticated)).await;
    asking.abort();
    serving.shutdown_background();
}

#[tokio::test]
async fn a_head_that_comes_back_at_the_same_address_is_found_again() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let (inbox, mut events) = mpsc::channel(8);
    let (rest, _kept) = mpsc::channel(8);
    let standing = Standing::new(rest);
    standing.set_leading(true).await;
    let asking = tokio::spawn(head(address, None).keep_asking(standing.clone(), inbox));
    becomes(&mut events, |answer| matches!(answer, Answer::Read(_))).await;
    serving.shutdown_background();
    becomes(&mut events, |answer| *answer == Answer::Unreadable(Problem::Unreachable)).await;
    let (_, serving) = fake.serve(address);
    becomes(&mut events, |answer| matches!(answer, Answer::Read(_))).await;
    // Nothing has changed but how long it has been idle, which is not told each second.
    let before = fake.0.lock().unwrap().asked;
    let quiet = timeout(Duration::from_millis(3500), next(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let asked = fake.0.lock().unwrap().asked - before;
    assert!((2..=4).contains(&asked), "{asked} in three and a half seconds");
    asking.abort();
    serving.shutdown_background();
}

#[tokio::test]
async fn a_slow_head_is_read_all_the_same_and_nothing_flaps() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    fake.set(|state| state.fault = Fault::Slow);
    let (inbox, mut events) = mpsc::channel(8);
    let (rest, _kept) = mpsc::channel(8);
    let standing = Standing::new(rest);
    standing.set_leading(true).await;
    let asking = tokio::spawn(head(address, None).keep_asking(standing.clone(), inbox));
    let Answer::Read(reading) = next(&mut events).await else { panic!("it answers in time") };
    assert_eq!(reading.nodes["01"].state, NodeState::Idle { millis: 1000 });
    let quiet = timeout(Duration::from_secs(5), next(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // One question after the other, each as soon as the last is answered.
    let asked = fake.0.lock().unwrap().asked;
    assert!((4..=5).contains(&asked), "{asked} in six and a half seconds");
    fake.set(|state| state.status = None);
    becomes(&mut events, |answer| matches!(answer, Answer::Read(reading) if reading.nodes.is_empty())).await;
    asking.abort();
    serving.shutdown_background();
}

#[tokio::test]
async fn a_head_that_asks_for_a_certificate_is_shown_one_and_none_other_reads_it() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name)
    };
    let made = |name: &str| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        (file(&format!("{name}.crt"), &cert), file(&format!("{name}.key"), &key), cert, key)
    };
    let (ca_file, _, cert, key) = made("head");
    let (cert_file, key_file, client, _) = made("client");
    let (other_cert, other_key, ..) = made("other");
    let tls =
        ServerTlsConfig::new().identity(Identity::from_pem(cert, key)).client_ca_root(Certificate::from_pem(client));
    let fake = FakeHead::default();
    let (address, serving) = fake.serve_with(loopback(), Server::builder().tls_config(tls).unwrap());
    let ask = async |client: Option<(PathBuf, PathBuf)>| {
        let client = client.map(|(cert_file, key_file)| ClientCertificate { cert_file, key_file });
        let address = format!("localhost:{}", address.port());
        let cluster = Cluster { address, ca_file: Some(ca_file.clone()), client, ..Cluster::default() };
        Gcs::new(cluster).status().await.map_err(|error| error.problem())
    };
    assert!(ask(Some((cert_file.clone(), key_file.clone()))).await.is_ok());
    assert_eq!(ask(None).await.unwrap_err(), Problem::Unreachable);
    assert_eq!(ask(Some((other_cert, other_key))).await.unwrap_err(), Problem::Unreachable);
    assert_eq!(ask(Some((cert_file, folder.path().join("none")))).await.unwrap_err(), Problem::Unauthenticated);
    serving.shutdown_background();
}

#[tokio::test]
async fn a_node_is_drained_with_a_reason_and_what_was_launched_is_told() {
    let fake = FakeHead::default();
    let (address, serving) = fake.serve(loopback());
    let gcs = head(address, None).gcs;
    let deadline = ebb_core::time::Instant::from_millis(1_000);
    let idle = || gcs.drain("0aff", DrainReason::IdleTermination, "nobody needs it", deadline);
    assert_eq!(idle().await.unwrap(), Drained::Accepted);
    fake.set(|state| state.busy = true);
    assert_eq!(idle().await.unwrap(), Drained::Refused("no longer idle".into()));
    let lost = gcs.drain("0aff", DrainReason::Preemption, "spot", deadline).await.unwrap();
    assert_eq!(lost, Drained::Accepted);
    let drains = fake.0.lock().unwrap().drains.clone();
    let seen = drains.iter().map(|drain| (drain.node_id.clone(), drain.reason, drain.deadline_timestamp_ms));
    assert_eq!(seen.collect::<Vec<_>>(), [1, 1, 2].map(|reason| (vec![0x0a, 0xff], reason, 1_000)));
    for nonsense in ["", "0", "zz", "äb"] {
        let error = gcs.drain(nonsense, DrainReason::Preemption, "", deadline).await.unwrap_err();
        assert!(error.to_string().contains("id"), "{error}");
    }
    assert_eq!(fake.0.lock().unwrap().drains.len(), 3, "nonsense is not sent");

    let launches = Launches { asked_for: vec![("cpu".into(), 2)], pods: vec![] };
    gcs.report(7, &launches).await.unwrap();
    let reported = fake.0.lock().unwrap().reported.clone().unwrap();
    assert_eq!((reported.autoscaler_state_version, reported.pending_instance_requests.len()), (7, 2));
    serving.shutdown_background();
}

#[test]
fn pauses_grow_and_end() {
    let pauses = [0, 1, 2, 3, 4, 5, 6, 99].map(|failures| pause(failures).as_secs());
    assert_eq!(pauses, [1, 1, 2, 4, 8, 15, 15, 15]);
}
