//! Listens for agents, with the certificate that `tls` keeps current.

use std::net::SocketAddr;
use std::sync::Arc;

use ebb_proto::v1::Settings;
use ebb_proto::v1::reports_server::ReportsServer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::limits;
use super::service::{Gate, Service};
use crate::tls::Certificate;
use crate::token::{ClusterReview, Tokens};

/// Serves until `stop`; `beside`: what else is served there. A new certificate takes a new server: the agents, whose streams
/// end, come back to that one.
pub async fn serve(
    address: SocketAddr,
    tokens: Arc<Tokens<ClusterReview>>,
    gate: Gate,
    settings: Settings,
    beside: axum::Router,
    mut certificates: watch::Receiver<Option<Certificate>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let certificate = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            certificate = certificates.wait_for(Option::is_some) => certificate?.clone().expect("waited for"),
        };
        certificates.mark_unchanged();
        let round = stop.child_token();
        let service = Service { tokens: tokens.clone(), gate: gate.clone(), settings, stop: round.clone() };
        let incoming = TcpIncoming::bind(address)
            .map_err(|error| anyhow::anyhow!(error).context(format!("listen on {address}")))?
            .with_nodelay(Some(true));
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(&certificate.chain, &certificate.key)))?
            .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(limits::KEEPALIVE_EVERY))
            .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(limits::HEADER_BYTES)
            .add_routes(Routes::from(beside.clone()))
            .add_service(ReportsServer::new(service).max_decoding_message_size(limits::MESSAGE_BYTES))
            .serve_with_incoming_shutdown(incoming, round.clone().cancelled_owned());
        tokio::pin!(server);
        tokio::select! {
            result = &mut server => result?,
            _ = certificates.changed() => {
                tracing::info!("certificate changed");
                round.cancel();
                server.await?;
            }
        }
    }
}
