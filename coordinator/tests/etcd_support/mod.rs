//! A real etcd for tests: a process of its own on free ports, that can be killed, stopped and started
//! again on its data.

use std::{
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use ballast_runtime::config::{Store, StoreKind};
use rustix::process::{Pid, Signal, kill_process};

/// An etcd that takes longer than this to serve does not start.
const START_MAX: Duration = Duration::from_secs(30);

/// One process of etcd and its data.
pub(crate) struct Server {
    data: tempfile::TempDir,
    client: u16,
    peer: u16,
    /// Before `--`; for TLS.
    scheme: &'static str,
    flags: Vec<String>,
    process: Child,
}

impl Server {
    /// Starts the members of one cluster and waits until they serve.
    pub(crate) fn start_cluster<const N: usize>() -> [Self; N] {
        let peers: [u16; N] = std::array::from_fn(|_| free_port());
        let url = |(index, port): (usize, &u16)| format!("m{index}=http://127.0.0.1:{port}");
        let cluster = peers.iter().enumerate().map(url).collect::<Vec<_>>().join(",");
        let mut servers = std::array::from_fn(|index| {
            let data = tempfile::tempdir().expect("a temporary directory");
            let (client, peer) = (free_port(), peers[index]);
            // What comes later wins.
            let flags = vec![format!("--name=m{index}"), format!("--initial-cluster={cluster}")];
            let process = spawn(&data, "http", client, peer, &flags);
            Self { data, client, peer, scheme: "http", flags, process }
        });
        // They wait for each other.
        servers.iter_mut().for_each(Self::wait);
        servers
    }

    /// Starts one and waits until it serves.
    pub(crate) fn start() -> Self {
        Self::start_with("http", |_| Vec::new())
    }

    /// The same with flags for the folder it has to itself.
    pub(crate) fn start_with(
        scheme: &'static str,
        flags: impl FnOnce(&tempfile::TempDir) -> Vec<String>,
    ) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        let flags = flags(&data);
        let (client, peer) = (free_port(), free_port());
        let process = spawn(&data, scheme, client, peer, &flags);
        let mut server = Self { data, client, peer, scheme, flags, process };
        server.wait();
        server
    }

    /// HOST:PORT where it serves.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// The section `[coordinator.store]` for it.
    pub(crate) fn config(&self, lease_s: u64) -> Store {
        let address = match self.scheme {
            "https" => format!("https://localhost:{}", self.client),
            _ => self.address(),
        };
        Store { kind: StoreKind::Etcd, endpoints: vec![address], lease_s, ..Store::default() }
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("reaped");
    }

    /// Starts it again on the same data and ports, and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(&self.data, self.scheme, self.client, self.peer, &self.flags);
        self.wait();
    }

    /// The same on another port, where nobody looks for it; returns the one before.
    pub(crate) fn restart_elsewhere(&mut self) -> u16 {
        let before = std::mem::replace(&mut self.client, free_port());
        self.restart();
        before
    }

    /// The same where it was before.
    pub(crate) fn restart_at(&mut self, port: u16) {
        self.client = port;
        self.restart();
    }

    /// Stops it where it is; it keeps its connections and answers nothing.
    pub(crate) fn freeze(&self) {
        freeze(&self.process);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        thaw(&self.process);
    }

    /// Runs etcdctl on it.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(binary("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.address()]).args(arguments);
        let output = command.output().expect("etcdctl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "etcdctl {arguments:?}: {stdout}{stderr}");
        stdout
    }

    /// Forgets the history of everything up to now.
    pub(crate) fn compact(&self) {
        let status = self.ctl(&["endpoint", "status", "--write-out", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let revision = &status[0]["Status"]["header"]["revision"];
        self.ctl(&["compaction", &revision.to_string()]);
    }

    fn wait(&mut self) {
        let started = Instant::now();
        while TcpStream::connect(self.address()).is_err() {
            let ended = self.process.try_wait().expect("a child of our own");
            assert!(ended.is_none(), "etcd ended with {ended:?}");
            assert!(started.elapsed() < START_MAX, "etcd does not serve");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead is as good.
        let _dead = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Stops a child where it is.
pub(crate) fn freeze(child: &Child) {
    kill_process(Pid::from_child(child), Signal::STOP).expect("a process of our own");
}

/// Lets a child go on.
pub(crate) fn thaw(child: &Child) {
    kill_process(Pid::from_child(child), Signal::CONT).expect("a process of our own");
}

fn spawn(
    data: &tempfile::TempDir,
    scheme: &str,
    client: u16,
    peer: u16,
    flags: &[String],
) -> Child {
    let (client, peer) =
        (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut command = Command::new(binary("etcd"));
    command.arg("--data-dir").arg(data.path().join("data"));
    command.args(["--name", "test", "--log-level", "fatal", "--logger", "zap"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("test={peer}")]);
    command.args(flags).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("etcd starts")
}

/// `BALLAST_ETCD` names the folder of another etcd than the one that setup brings.
fn binary(name: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/etcd/bin");
    let folder = std::env::var_os("BALLAST_ETCD").map_or_else(|| own.into(), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "no {name} at {}: run `cargo xtask setup`, or set BALLAST_ETCD to a folder that has it",
        path.display(),
    );
    path
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}
