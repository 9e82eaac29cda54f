/// Bytes of the host's memory that a new program could have, where the operating system tells: `MemAvailable` of
/// `/proc/meminfo` on Linux, and no more than the control group allows.
pub fn available_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kibibytes * 1024).min(control_group_rest().unwrap_or(u64::MAX)))
}

/// What the control group (version 2) still allows; `None` where it sets no limit.
fn control_group_rest() -> Option<u64> {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}
