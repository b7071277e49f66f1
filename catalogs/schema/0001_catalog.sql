-- The first schema. Everything in here can be rebuilt from events/, plans/ and the manifests.
CREATE TABLE events (number INTEGER, kind VARCHAR, file VARCHAR);
CREATE TABLE axes (axis VARCHAR, position INTEGER, value VARCHAR, value_position INTEGER);
-- `cells` is created from the cell event, since the axes are real columns in it; so are the views on it
CREATE TABLE imports (import_id INTEGER, source VARCHAR, sha256 VARCHAR, n_seeds BIGINT);
CREATE TABLE seeds (
    seed_id VARCHAR, cell_id INTEGER, grp VARCHAR, split VARCHAR, prn DOUBLE, decision_point BOOLEAN, k INTEGER,
    control_axis VARCHAR, control_value DOUBLE, params VARCHAR, import_id INTEGER
);
CREATE TABLE plans (
    plan_no INTEGER, plan_id VARCHAR, purpose VARCHAR, policy VARCHAR, budget VARCHAR, created VARCHAR,
    teacher VARCHAR, teacher_version VARCHAR, teacher_hash VARCHAR, n_draws BIGINT, usd DOUBLE, gpu_s DOUBLE,
    superseded_by VARCHAR
);
-- paid for and thrown away: answers of a plan that was superseded before it committed them
CREATE TABLE other_spend (plan_no INTEGER, known_usd DOUBLE, in_doubt_usd DOUBLE, gpu_s DOUBLE, note VARCHAR);
CREATE TABLE plan_cells (
    plan_no INTEGER, cell_id INTEGER, target BIGINT, credit BIGINT, fresh BIGINT, n_frame BIGINT, n_taken BIGINT,
    weight DOUBLE, floor BIGINT, ceiling BIGINT, usd DOUBLE, mark VARCHAR
);
CREATE TABLE units (
    plan_no INTEGER, unit INTEGER, attempt INTEGER, manifest VARCHAR, shard VARCHAR, shard_offset BIGINT,
    shard_bytes BIGINT, shard_digest VARCHAR, n_ok BIGINT, n_failed BIGINT, gpu_s DOUBLE, usd DOUBLE,
    in_doubt_usd DOUBLE, wall_s DOUBLE
);
CREATE TABLE unit_cells (
    plan_no INTEGER, unit INTEGER, attempt INTEGER, cell_id INTEGER, generated BIGINT, failed BIGINT, gpu_s DOUBLE,
    usd DOUBLE, in_doubt_usd DOUBLE, n_bytes BIGINT, weight_sum DOUBLE, weight_sq_sum DOUBLE
);
CREATE TABLE samples (
    sample_id VARCHAR, plan_no INTEGER, unit INTEGER, attempt INTEGER, cell_id INTEGER, seed_id VARCHAR, k SMALLINT,
    n_k SMALLINT, kind VARCHAR, split VARCHAR, source VARCHAR, decision_point BOOLEAN, pi DOUBLE, weight DOUBLE,
    outcome VARCHAR, "offset" BIGINT, n_bytes BIGINT, gpu_s DOUBLE, usd DOUBLE
);
CREATE TABLE attempts (
    plan_no INTEGER, unit INTEGER, attempt INTEGER, cell_id INTEGER, seed_id VARCHAR, k SMALLINT, failure VARCHAR,
    reason VARCHAR, tries INTEGER, usd DOUBLE, in_doubt_usd DOUBLE
);
