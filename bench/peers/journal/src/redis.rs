//! Redis Streams with `appendfsync always`, driven by redis' own benchmark.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::Options;

/// Time that the server gets to start.
const START_MAX: Duration = Duration::from_secs(10);
/// Ticks of the clock in `/proc/PID/stat`, per second.
const TICKS: f64 = 100.0;

pub(crate) fn measure(options: &Options, directory: &Path) -> anyhow::Result<Value> {
    let server = Server::start(options, directory)?;
    let processor = server.processor_seconds()?;
    let mut answer = benchmark(options, server.port)?;
    let processor = server.processor_seconds()? - processor;
    answer["records_per_cpu_s"] = json!(options.records as f64 / processor);
    Ok(answer)
}

/// A running server; killed when it is dropped.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(options: &Options, directory: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = File::create(directory.join("log"))?;
        let mut command = program(options, "redis-server");
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        command.args(["--port", &port.to_string(), "--dir"]).arg(directory);
        let process = command.stdout(log).spawn().context("cannot start redis-server")?;
        let server = Self { process, port };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if start.elapsed() > START_MAX {
                let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
                bail!("redis-server did not start: {log}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn processor_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
        let (user, system) = ticks(12).zip(ticks(13)).context("cannot read /proc")?;
        Ok((user + system) / TICKS)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn benchmark(options: &Options, port: u16) -> anyhow::Result<Value> {
    let mut command = program(options, "redis-benchmark");
    command.args(["-p", &port.to_string(), "-c", &options.clients.to_string(), "--csv"]);
    command.args(["-n", &options.records.to_string(), "XADD", "stream", "*", "record"]);
    command.arg("x".repeat(options.bytes)).stderr(Stdio::inherit());
    let output = command.output().context("cannot start redis-benchmark")?;
    ensure!(output.status.success(), "redis-benchmark failed");
    // "test","rps","avg_latency_ms","min","p50","p95","p99","max"
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("redis-benchmark says nothing")?;
    let fields: Vec<f64> =
        line.rsplit(',').map(|field| field.trim_matches('"').parse().unwrap_or(0.0)).collect();
    let [_max, p99, _p95, p50, _min, _average, rate, ..] = fields[..] else {
        bail!("redis-benchmark says {text}");
    };
    Ok(json!({
        "records_per_s": rate,
        "megabytes_per_s": rate * options.bytes as f64 / 1e6,
        "p50_ms": p50,
        "p99_ms": p99,
    }))
}

/// One of redis' programs. In a folder that was unpacked beside it, it needs its libraries named.
fn program(options: &Options, name: &str) -> Command {
    let Some(folder) = &options.redis else { return Command::new(name) };
    let mut command = Command::new(folder.join("usr/bin").join(name));
    command.env("LD_LIBRARY_PATH", folder.join("usr/lib/x86_64-linux-gnu"));
    command
}
