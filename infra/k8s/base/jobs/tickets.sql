-- Nightly triage of support tickets, as in examples/tickets, with tables, models and output in a bucket.
--
--   rowmill submit tickets.sql --param ds=2026-11-20 --wait

CREATE EXTERNAL TABLE tickets STORED AS PARQUET LOCATION 's3://lake/tickets/ds={{ ds }}/';

CREATE MODEL triage     WITH (engine = 'candle', source = 's3://lake/models/triage/');
CREATE MODEL mini_embed WITH (engine = 'candle', source = 's3://lake/models/mini-embed/');

CREATE JOB ticket_triage WITH (
  output = 's3://lake/tickets_ai/', logical_date = '{{ ds }}', key = 'ticket_id',
  model = 'triage', shard_rows = 500, max_error_ratio = 0.01
) AS
SELECT ticket_id,
       ai_classify(body, ['billing', 'bug', 'how-to', 'other'], with_score => true) AS topic,
       ai_extract(body, 'product STRING, severity INT')                             AS facts,
       ai_embed(body, model => 'mini_embed')                                        AS body_vector
FROM tickets
WHERE lang = 'en' AND ai_filter(prompt('Is this a real customer request? {0}', body));
