-- Weighted corpora, verdicts, byproducts and the divergence queue. All of it can be rebuilt from the files.
ALTER TABLE seeds ADD COLUMN size DOUBLE;
-- frame | byproduct | divergence: only seeds of the frame have an inclusion probability
ALTER TABLE seeds ADD COLUMN origin VARCHAR DEFAULT 'frame';
ALTER TABLE plans ADD COLUMN adaptive BOOLEAN DEFAULT false;
ALTER TABLE plan_cells ADD COLUMN n_before BIGINT;
ALTER TABLE plan_cells ADD COLUMN pi_round DOUBLE;
ALTER TABLE plan_cells ADD COLUMN expected_yield DOUBLE;
-- one row per seed with draws, as of the last plan for its split (docs/design/0002-planning.md)
CREATE TABLE corpus (
    split VARCHAR, teacher_hash VARCHAR, seed_id VARCHAR, cell_id INTEGER, k_seed SMALLINT, k_counted SMALLINT,
    share DOUBLE, pi DOUBLE
);
-- of what verifiers said, only rejections are rows; the units that they have seen are listed
CREATE TABLE drops (sample_id VARCHAR, stage VARCHAR, reason VARCHAR, event INTEGER);
-- how many of each plan's samples are dropped, kept up to date so that coverage needs no join over samples
CREATE TABLE drop_cells (plan_no INTEGER, cell_id INTEGER, dropped BIGINT);
CREATE TABLE verified_units (plan_no INTEGER, unit INTEGER, attempt INTEGER, stage VARCHAR, event INTEGER);
CREATE TABLE ingests (
    ingest_no INTEGER, ingest_id VARCHAR, kind VARCHAR, source VARCHAR, sha256 VARCHAR, n_rows BIGINT, n_taken BIGINT,
    n_credit BIGINT, n_refused BIGINT, created VARCHAR
);
CREATE TABLE refusals (ingest_no INTEGER, reason VARCHAR, n_rows BIGINT, first_row VARCHAR, example VARCHAR);
-- the divergence queue: one row per case with its latest state
CREATE TABLE cases (
    case_id VARCHAR, kind VARCHAR, seed_id VARCHAR, cell_id INTEGER, priority DOUBLE, state VARCHAR, note VARCHAR,
    sample_id VARCHAR, teacher_hash VARCHAR, opened VARCHAR, plan_id VARCHAR, event INTEGER
);
