//! What is wrong with a job's words about spilling, and where.

use crate::bed::Bed;

const HEAD: &str = "CREATE MODEL own WITH (engine = 'echo'); CREATE MODEL away WITH (engine = 'openai', name = 'x'); \
    CREATE MODEL slow WITH (engine = 'openai', name = 'x', lane = 'batch'); \
    CREATE MODEL roomy WITH (engine = 'openai', name = 'x', lane = 'flex');\n\
    CREATE JOB j WITH (output = 'out', logical_date = '1', ";

/// Options, the part of them that is wrong, what is said, and the hint.
const CASES: [(&str, &str, &str, &str); 11] = [
    ("spill_to = 'awy'", "'awy'", "there is no model `awy`", "did you mean 'away'?"),
    (
        "spill_to = 'own'",
        "'own'",
        "model `own` is on this machine: nothing can spill to it",
        "spill_to names a managed model, such as one with engine = 'openai'",
    ),
    (
        "spill_to = 'away', spill_when = 'later'",
        "'later'",
        "option `spill_when` cannot be 'later'",
        "it is one or several of 'never', 'always', 'unavailable', 'late', 'overflow', 'low_confidence'",
    ),
    (
        "spill_to = 'away', spill_when = 'always, late'",
        "'always, late'",
        "'never' and 'always' stand alone",
        "spill_when = 'late' or spill_when = 'unavailable, overflow'",
    ),
    (
        "spill_when = 'overflow'",
        "'overflow'",
        "this needs a model to spill to",
        "spill_to = 'MODEL', a managed model of this file",
    ),
    (
        "spill_to = 'away', spill_when = 'late'",
        "'late'",
        "this needs a deadline",
        "deadline = '06:00', or a moment: '2026-11-21T06:00:00+01:00'",
    ),
    (
        "spill_to = 'away', spill_when = 'late', deadline = 'six'",
        "'six'",
        "\"six\" is no deadline",
        "deadline = '06:00', the next one by the planner's clock, or '2026-11-21T06:00:00+01:00'",
    ),
    (
        "spill_to = 'away', deadline = '06:00'",
        "'06:00'",
        "a deadline changes nothing unless the job spills when it is late, or a model chooses its lane",
        "add spill_to = 'MODEL', spill_when = 'late', or lane = 'auto' in CREATE MODEL, or drop the deadline",
    ),
    (
        "spill_to = 'away, slow', spill_when = 'overflow, late', deadline = '06:00'",
        "'away, slow'",
        "model `slow` answers in batches, up to a day later: what is late cannot wait for it",
        "spill to a model with lane = 'online', or drop 'late'",
    ),
    (
        "spill_to = 'away, roomy', spill_when = 'late', deadline = '06:00'",
        "'away, roomy'",
        "model `roomy` answers when its provider has room, hours later at times: what is late cannot wait for it",
        "spill to a model with lane = 'online', or drop 'late'",
    ),
    (
        "spill_to = 'away', spill_when = 'low_confidence'",
        "'low_confidence'",
        "this needs both spill_when = 'low_confidence' and min_confidence",
        "min_confidence = 0.7: labels with a lower probability are asked elsewhere",
    ),
];

/// Holds a job file to what is said of it, and where.
fn is_refused(head: &str, (options, wrong, message, hint): (&str, &str, &str, &str)) {
    let bed = Bed::new();
    let error = bed.spec(&format!("{head}{options}) AS SELECT 1")).unwrap_err();
    let column = head.lines().last().unwrap().len() + options.find(wrong).unwrap() + 1;
    let file = format!("{}/", bed.folder.path().display());
    assert_eq!(error.report().replace(&file, ""), format!("error: {message}\n  at job.sql:2:{column}\n  hint: {hint}"));
}

#[test]
fn what_is_wrong_is_said_where_it_stands() {
    CASES.into_iter().for_each(|case| is_refused(HEAD, case));
}

#[test]
fn what_is_late_does_not_wait_for_a_model_that_chooses_its_lane() {
    // Such a model changes what is said of deadlines, so it has a file of its own.
    let head = HEAD.replace("lane = 'flex'", "lane = 'auto'");
    let what = "model `roomy` waits for cheap lanes as long as the deadline allows: what is late cannot wait for it";
    let hint = "spill to a model with lane = 'online', or drop 'late'";
    is_refused(&head, ("spill_to = 'roomy', spill_when = 'late', deadline = '06:00'", "'roomy'", what, hint));
}
