-- Nightly triage of support tickets: which of them are real requests, what they are about, what they say of product and
-- severity, and a vector for search. Two small models that come with the example answer, on this machine, offline.
--
--   rowmill run examples/tickets/tickets.sql --param ds=2026-11-20

CREATE EXTERNAL TABLE tickets STORED AS PARQUET LOCATION 'data/ds={{ ds }}/';

CREATE MODEL triage     WITH (engine = 'candle', source = 'models/triage');
CREATE MODEL mini_embed WITH (engine = 'candle', source = 'models/mini-embed');

CREATE JOB ticket_triage WITH (
  output = '{{ output | default("out") }}', logical_date = '{{ ds }}', key = 'ticket_id',
  model = 'triage', shard_rows = 500, max_error_ratio = 0.01
) AS
SELECT ticket_id,
       ai_classify(body, ['billing', 'bug', 'how-to', 'other'], with_score => true) AS topic,
       ai_extract(body, 'product STRING, severity INT')                             AS facts,
       ai_embed(body, model => 'mini_embed')                                        AS body_vector
FROM tickets
WHERE lang = 'en' AND ai_filter(prompt('Is this a real customer request? {0}', body));
