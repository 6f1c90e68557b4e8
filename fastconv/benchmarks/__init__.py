"""What ``fastconv bench``, ``fastconv profile`` and the files in ``bench/`` measure with. Nothing else imports it.

- ``layers``: the layers that are measured: one list of rows, and the convolutions of whole networks;
- ``jobs``: an operation on a layer, with its arrays and its right result;
- ``peers``: who does the job: fastconv's algorithms and backends, and the libraries beside it, a function for each;
- ``timing``: who takes turns, how often, and what counts;
- ``machine``: the ceilings (multiply-adds and memory), measured, and what this machine is;
- ``footprint``: how much memory a call takes, measured;
- ``rows``: all of that for one job, as records;
- ``report``, ``plots``: tables, files and pictures of records.
"""
