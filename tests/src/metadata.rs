//! Amazon's own mock of EC2's instance metadata service, which answers nobody without a token.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::{Program, binary, http, wait_until};

/// It starts in a moment; this is for a machine that does other things as well.
const SOON: Duration = Duration::from_secs(60);

pub struct MetadataMock {
    pub port: u16,
    pub program: Program,
}

impl MetadataMock {
    /// `args`: what it tells; see `ec2-metadata-mock --help`. `dir`: for its log.
    pub async fn start(dir: &Path, port: u16, args: &[&str]) -> Self {
        let found = Command::new(binary("xtask")).args(["lab", "metadata-mock"]).output().expect("xtask starts");
        let said = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success(), "ec2-metadata-mock was not built: {said}");
        let mut command = Command::new(String::from_utf8_lossy(&found.stdout).trim());
        // Its configuration would come from there.
        command.env("HOME", dir).args(args).args(["--imdsv2", "--hostname", "127.0.0.1", "--port", &port.to_string()]);
        let program = Program::start("ec2-metadata-mock", command, dir.join("mock.log"));
        let address = format!("127.0.0.1:{port}");
        let listens = async || tokio::net::TcpStream::connect(&address).await.is_ok();
        wait_until("the mock to listen", SOON, listens, async || program.log()).await;
        let (status, _) = http(&address, "GET", "/latest/meta-data/instance-id", &[], "").await;
        assert_eq!(status, 401, "the mock answers without a token");
        Self { port, program }
    }
}
