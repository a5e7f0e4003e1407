//! A headless Chromium for one test, driven over WebDriver: JSON over HTTP, which needs no client of its own. The Rust
//! clients stand on a crate whose licence (MPL-2.0) this project doesn't take, and know neither the browser's console
//! nor its preference for dark or light.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use crate::http::http_1_1;
use crate::program::{Program, free_port};
use crate::wait_until;

const SOON: Duration = Duration::from_secs(30);
/// No network of its own, and nothing kept.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
];

/// Ended on drop, with its profile.
pub struct Browser {
    driver: Program,
    address: String,
    session: String,
    profile: PathBuf,
}

/// Keys as WebDriver names them.
pub mod key {
    pub const DOWN: &str = "\u{e015}";
    pub const ENTER: &str = "\u{e007}";
    pub const ESCAPE: &str = "\u{e00c}";
    pub const RIGHT: &str = "\u{e014}";
    pub const TAB: &str = "\u{e004}";
}

impl Browser {
    /// Panics without the Debian packages `chromium` and `chromium-driver`, which `cargo xtask test browser` installs.
    pub async fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("ebb-browser-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&profile).expect("the temporary folder takes a folder");
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let driver = Program::start("chromedriver", command, profile.join("chromedriver.log"));
        let mut browser = Self { driver, address: format!("127.0.0.1:{port}"), session: String::new(), profile };
        let listening = async || tokio::net::TcpStream::connect(&browser.address).await.is_ok();
        wait_until("chromedriver to listen", SOON, listening, async || browser.driver.log()).await;
        let own = format!("--user-data-dir={}", browser.profile.join("profile").display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([own.as_str()]).collect();
        let capabilities = json!({"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"},
        }});
        let reply = browser.call("POST", "", &json!({"capabilities": capabilities})).await;
        browser.session = format!("/{}", reply["sessionId"].as_str().expect("a session has an id"));
        browser
    }

    pub async fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({"url": url})).await;
    }

    /// The value of a JavaScript expression.
    pub async fn value(&self, expression: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({"script": format!("return {expression}"), "args": []})).await
    }

    /// Waits until a JavaScript expression is true.
    pub async fn until(&self, expression: &str) {
        let what = format!("`{expression}`");
        let holds = async || self.value(expression).await == Value::Bool(true);
        wait_until(&what, SOON, holds, async || self.value("document.body.innerText").await.to_string()).await;
    }

    /// Presses a key and lets it go.
    pub async fn press(&self, key: &str) {
        let strokes = [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        self.call("POST", "/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": strokes}]})).await;
    }

    pub async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// `prefers-color-scheme`: `dark` or `light`.
    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What the console says: errors, refusals by the content security policy, everything.
    pub async fn console(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", &json!({"type": "browser"})).await;
        let entries = log.as_array().expect("a list").iter();
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A PNG of what is in the window.
    pub async fn screenshot(&self, file: &Path) {
        let image = self.call("GET", "/screenshot", &Value::Null).await;
        // Kubernetes writes bytes in Base64, too.
        let ByteString(bytes) = serde_json::from_value(image).expect("a screenshot is Base64");
        std::fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder can be made");
        std::fs::write(file, bytes).expect("the folder takes a file");
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.call("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters})).await;
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/session{}{path}", self.session);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, reply) = http_1_1(&self.address, method, &path, &body).await;
        assert_eq!(status, 200, "{method} {path} {body}: {reply}");
        let mut reply: Value = serde_json::from_str(&reply).expect("WebDriver answers JSON");
        reply["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium outlives a chromedriver that is killed, so the session ends first.
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let request = format!(
                "DELETE /session{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                self.session, self.address
            );
            // Chromium has ended when the answer comes.
            let _may_have_crashed = stream.write_all(request.as_bytes()).and_then(|()| {
                stream.set_read_timeout(Some(SOON))?;
                stream.read(&mut [0; 1024])
            });
        }
        let _left_to_the_system = std::fs::remove_dir_all(&self.profile);
    }
}
