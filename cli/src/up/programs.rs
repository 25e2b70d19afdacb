//! The programs of a cluster: where they are, how one is started, what its log says.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// How far back [`Program::last_words`] looks.
const LAST_WORDS_BYTES: u64 = 16 << 10;
const LAST_WORDS_LINES: usize = 12;

/// Paths of the three roles' programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) coordinator: PathBuf,
    pub(super) learner: PathBuf,
    pub(super) actor: PathBuf,
}

impl Programs {
    /// All three, see [`find`].
    pub(super) fn find(given: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self {
            coordinator: find(given, "ballast-coordinator")?,
            learner: find(given, "ballast-learner")?,
            actor: find(given, "ballast-actor")?,
        })
    }
}

/// Where a program is. Looks in `given` alone if there is one, else beside this program, then in PATH.
pub(crate) fn find(given: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let directories: Vec<PathBuf> = match given {
        Some(directory) => vec![directory.to_owned()],
        None => {
            let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
            let path = env::var_os("PATH").unwrap_or_default();
            beside.into_iter().chain(env::split_paths(&path)).collect()
        }
    };
    let found = directories.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let first = directories.first().map(|dir| dir.display().to_string());
        let first = first.unwrap_or_else(|| "PATH".to_owned());
        format!("{name} is neither in {first} nor in PATH; build it with `cargo build`, or name its directory with --programs DIR")
    })
}

/// One process of the cluster, as it is started each time.
#[derive(Debug)]
pub(crate) struct Program {
    /// For people and for the log's name: "coordinator", "learner", "actor-0".
    pub(crate) name: String,
    path: PathBuf,
    args: Vec<OsString>,
    log: PathBuf,
    /// Where in the log the newest process begins, bytes.
    log_start: u64,
}

impl Program {
    pub(crate) fn new(name: &str, path: &Path, args: Vec<OsString>, logs: &Path) -> Self {
        let log = logs.join(format!("{name}.log"));
        Self { name: name.to_owned(), path: path.to_owned(), args, log, log_start: 0 }
    }

    /// Gives every later start two more arguments.
    pub(super) fn add_flag(&mut self, flag: &str, value: &str) {
        self.args.extend([flag.into(), value.into()]);
    }

    /// Starts the process with both outputs appended to its log. It is in a process group of its
    /// own, so that Ctrl-C reaches only us and we stop it in order, and it dies with us.
    pub(crate) fn start(&mut self) -> io::Result<Child> {
        let log = self.open_log()?;
        self.spawn(log.try_clone()?.into(), log)
    }

    /// The same, but what it says on stdout comes to us.
    pub(crate) fn start_talking(&mut self) -> io::Result<Child> {
        let log = self.open_log()?;
        self.spawn(Stdio::piped(), log)
    }

    fn open_log(&mut self) -> io::Result<File> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        self.log_start = log.metadata()?.len();
        Ok(log)
    }

    fn spawn(&self, stdout: Stdio, stderr: File) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        command.spawn()
    }

    /// The last lines the newest process wrote into the log, indented, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let tail = read_tail(&self.log, self.log_start).unwrap_or_default();
        let lines: Vec<&str> = tail.lines().collect();
        let first = lines.len().saturating_sub(LAST_WORDS_LINES);
        let mut words = format!("its log {} ends with", self.log.display());
        for line in &lines[first..] {
            words.push_str("\n  | ");
            words.push_str(line);
        }
        words
    }
}

/// Sends a signal; false when the process is gone already.
pub(super) fn send(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// The end of a file, from `start` at the earliest.
fn read_tail(path: &Path, start: u64) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES).max(start)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Asks the kernel to kill the child when the thread that starts it ends, which is our main thread.
#[expect(unsafe_code, reason = "the one thing the standard library cannot set before exec")]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed; these are two bare
    // system calls, and the error is built without allocation.
    unsafe {
        command.pre_exec(before_exec);
    }
}
