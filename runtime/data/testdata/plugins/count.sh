#!/bin/sh
# A source: rows with the numbers up to the configured count.
read -r hello
rows=$(printf '%s' "$hello" | sed 's/.*"rows":"\([0-9]*\)".*/\1/')
echo '{"autoglm_plugin":1,"role":"source","name":"count","version":"1"}'
i=1
while [ "$i" -le "$rows" ]; do
	echo '{"record":{"id":"'$i'","text":"This row was counted and has the number '$i'."}}'
	i=$((i + 1))
done
echo "counted $rows rows" >&2
echo '{"end":{"count":'$rows'}}'
