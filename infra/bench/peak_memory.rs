//! Peak memory of the product, for benchmarks: in a process of its own, since this one's has a past. Needs Python 3.

use std::process::Command;

/// Runs a command without its output and prints its peak resident memory in KiB.
const MEASURE: &str = "import resource,subprocess,sys
code=subprocess.call(sys.argv[1:],stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)";

/// Runs `rowmill <arguments>` with these variables besides. Returns its peak memory in MiB.
pub(crate) fn peak_memory(arguments: &[&str], environment: &[(String, String)]) -> u64 {
    let mut command = Command::new("python3");
    command.args(["-c", MEASURE, env!("CARGO_BIN_EXE_rowmill")]).args(arguments);
    let output = command.envs(environment.iter().cloned()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap() / 1024
}
