//! Names of the objects below a job's output (design.md 4). The only place that knows them.

/// The plan.
pub fn plan(run_key: &str) -> String {
    format!("run={run_key}/_plan.json")
}

/// The folder that readers open once the run is published; ends in `/`.
pub fn run_folder(run_key: &str) -> String {
    format!("run={run_key}/")
}

/// A shard's result. Its existence is the shard's commit.
pub fn part(run_key: &str, shard: u32) -> String {
    format!("run={run_key}/part-{shard:05}.parquet")
}

/// The run that a plan's name stands for.
pub fn run_of_plan(name: &str) -> Option<&str> {
    name.strip_prefix("run=")?.strip_suffix("/_plan.json").filter(|key| !key.contains('/'))
}

/// What all parts' names start with.
pub fn parts(run_key: &str) -> String {
    format!("run={run_key}/part-")
}

/// The shard that a part's name stands for.
pub fn shard_of_part(run_key: &str, name: &str) -> Option<u32> {
    name.strip_prefix(&parts(run_key))?.strip_suffix(".parquet")?.parse().ok()
}

/// How the run ended.
pub fn outcome(run_key: &str) -> String {
    format!("run={run_key}/_outcome.json")
}

/// The marker that other systems look for; derived from the outcome, written last.
pub fn success(run_key: &str) -> String {
    format!("run={run_key}/_SUCCESS")
}

/// The record that an attempt at a shard began.
pub fn attempt(run_key: &str, shard: u32, attempt: &str) -> String {
    format!("{}{attempt}.json", attempts(run_key, shard))
}

/// What the records of all attempts of a run start with.
pub fn attempts_of_run(run_key: &str) -> String {
    format!("run={run_key}/_attempts/")
}

/// What the records of all attempts at a shard start with.
pub fn attempts(run_key: &str, shard: u32) -> String {
    format!("{}{shard:05}/", attempts_of_run(run_key))
}

/// The shard that an attempt's name stands for.
pub fn shard_of_attempt(run_key: &str, name: &str) -> Option<u32> {
    name.strip_prefix(&attempts_of_run(run_key))?.split_once('/')?.0.parse().ok()
}

/// The record that an attempt at a shard failed.
pub fn failure(run_key: &str, shard: u32, attempt: &str) -> String {
    format!("{}{shard:05}-{attempt}.json", failures(run_key))
}

/// What the records of all failed attempts of a run start with.
pub fn failures(run_key: &str) -> String {
    format!("run={run_key}/_failures/")
}

/// The shard and the attempt that a failure's name stands for.
pub fn attempt_of_failure<'a>(run_key: &str, name: &'a str) -> Option<(u32, &'a str)> {
    let (shard, attempt) = name.strip_prefix(&failures(run_key))?.strip_suffix(".json")?.split_once('-')?;
    Some((shard.parse().ok()?, attempt))
}

/// The folder of a run's spend ledger; ends in `/`.
pub fn spend(run_key: &str) -> String {
    format!("run={run_key}/_spend/")
}

/// The folder of what a run takes of one amount of a rule of the operator's (rows, tokens, usd); ends in `/`.
pub fn spend_of_rule(run_key: &str, rule: &str, unit: &str) -> String {
    format!("run={run_key}/_spend_of_rules/{}/", rule_and_unit(rule, unit))
}

/// The folder, below the operator's ledger, of what all runs take of one amount of a rule in a day; ends in `/`.
pub fn spend_of_day(day: &str, rule: &str, unit: &str) -> String {
    format!("day={day}/{}/", rule_and_unit(rule, unit))
}

/// A rule's name may have any characters.
fn rule_and_unit(rule: &str, unit: &str) -> String {
    let rule: String = url::form_urlencoded::byte_serialize(rule.as_bytes()).collect();
    format!("rule={rule}/{unit}")
}

/// The `seq`-th entry of the spend ledger in a folder, counted from 1.
pub fn spend_entry(folder: &str, seq: u64) -> String {
    format!("{folder}{seq:08}.json")
}

/// What the copies of all executors' egress audits of a run start with.
pub fn audits(run_key: &str) -> String {
    format!("run={run_key}/_audit/")
}

/// The `segment`-th copied piece of an executor's egress audit, counted from 1.
pub fn audit_segment(run_key: &str, executor: &str, segment: u64) -> String {
    format!("{}{executor}/{segment:06}.jsonl", audits(run_key))
}

/// What the records of outcomes that a run's managed models gave start with.
pub fn answers_of_run(run_key: &str) -> String {
    format!("run={run_key}/_answers/")
}

/// What those for a shard start with.
pub fn answers(run_key: &str, shard: u32) -> String {
    format!("{}{shard:05}/", answers_of_run(run_key))
}

/// One record of such outcomes; `id` is its own.
pub fn answers_record(run_key: &str, shard: u32, id: &str) -> String {
    format!("{}{id}.jsonl", answers(run_key, shard))
}

/// What the results of all attempts at staging a run's query start with.
pub fn staged_of_run(run_key: &str) -> String {
    format!("run={run_key}/_staged/")
}

/// A file of the staged query result. `attempt` keeps two stagings apart; the plan names the one that counts.
pub fn staged(run_key: &str, attempt: &str, file: usize) -> String {
    format!("{}{attempt}/staged-{file:05}.parquet", staged_of_run(run_key))
}

/// Whether an attempt at staging is kept for a plan or deleted.
pub fn staged_fate(run_key: &str, attempt: &str) -> String {
    format!("{}{attempt}/_fate.json", staged_of_run(run_key))
}

/// The attempt that a name in [`staged_of_run`] belongs to.
pub fn attempt_of_staged<'a>(run_key: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(&staged_of_run(run_key))?.split_once('/').map(|(attempt, _)| attempt)
}

/// Which lane a model takes in a run, if it chooses. A model's name may have any characters.
pub fn lane(run_key: &str, model: &str) -> String {
    let model: String = url::form_urlencoded::byte_serialize(model.as_bytes()).collect();
    format!("run={run_key}/_lanes/{model}.json")
}

/// What the records of all provider batches of a run start with.
pub fn batches_of_run(run_key: &str) -> String {
    format!("run={run_key}/_batches/")
}

/// The folder of the records of provider batches; `chunk` names requests of a shard that were sent together. Ends in `/`.
pub fn batches(run_key: &str, shard: u32, chunk: &str) -> String {
    format!("{}{shard:05}/{chunk}/", batches_of_run(run_key))
}

/// How the rows of a chunk were cut into provider batches, in its folder; `round` counts from 0, a further one for rows that
/// got no answer.
pub fn batch_round(folder: &str, round: u32) -> String {
    format!("{folder}round-{round:02}.json")
}

/// A step of one provider batch, in its chunk's folder: `intent-1.json`, `created.json`, `results.jsonl`.
pub fn batch_step(folder: &str, round: u32, batch: usize, step: &str) -> String {
    format!("{folder}{round:02}-{batch:03}/{step}")
}

/// The `seq`-th claim on a logical date, counted from 1.
pub fn claim(logical_date: &str, seq: u64) -> String {
    format!("_claims/{logical_date}/{seq:06}.json")
}

/// What all claims start with.
pub const CLAIMS: &str = "_claims/";

/// What all claims on a logical date start with.
pub fn claims(logical_date: &str) -> String {
    format!("_claims/{logical_date}/")
}

/// The publication of the `seq`-th claim; readers take the highest.
pub fn published(logical_date: &str, seq: u64) -> String {
    format!("_published/{logical_date}/{seq:06}.json")
}

/// What all publications of a logical date start with; all dates' for `None`.
pub fn publications(logical_date: Option<&str>) -> String {
    match logical_date {
        Some(date) => format!("_published/{date}/"),
        None => "_published/".into(),
    }
}

/// The `(logical date, seq)` of a claim's or publication's name.
pub fn date_and_seq(name: &str) -> Option<(&str, u64)> {
    let mut segments = name.split('/').skip(1);
    let date = segments.next()?;
    let seq = segments.next()?.strip_suffix(".json")?.parse().ok()?;
    Some((date, seq))
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_can_be_read_back() {
        assert_eq!(super::shard_of_part("k", &super::part("k", 17)), Some(17));
        assert_eq!(super::shard_of_part("k", "run=k/part-00017.parquet.tmp"), None);
        assert_eq!(super::shard_of_attempt("k", &super::attempt("k", 17, "a")), Some(17));
        assert_eq!(super::attempt_of_failure("k", &super::failure("k", 17, "a-b")), Some((17, "a-b")));
        assert_eq!(super::date_and_seq(&super::claim("2026-11-20", 2)), Some(("2026-11-20", 2)));
    }
}
