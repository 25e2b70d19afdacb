//! Peak memory of a process, as Linux counts it.

/// Largest resident set this process has had, in bytes; 0 where the system does not tell.
#[must_use]
pub fn peak_rss_bytes() -> u64 {
    read("self").unwrap_or(0)
}

/// Largest resident set of process `pid` so far, in bytes; `None` once it is gone.
#[must_use]
pub fn peak_rss_of(pid: u32) -> Option<u64> {
    read(&pid.to_string())
}

fn read(process: &str) -> Option<u64> {
    parse_peak(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?)
}

/// The `VmHWM` line ("high water mark") of a `/proc/PID/status`, which counts in KiB.
fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(parse_peak("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_peak("Name:\tx\n"), None);
        assert_eq!(parse_peak("VmHWM:\t many kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_peak() {
        assert!(peak_rss_bytes() > 1 << 20);
        assert!(peak_rss_of(std::process::id()).is_some());
        assert_eq!(peak_rss_of(u32::MAX), None);
    }
}
