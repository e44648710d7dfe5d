#!/usr/bin/env bash
# A real Slurm of several emulated nodes on one Debian machine (root, no systemd), for the tests of the Slurm scripts.
#
#   cluster.sh start            install what is missing (said first), bring the cluster up, wait until all nodes are idle
#   cluster.sh stop             end jobs, stop the daemons, remove namespaces and /etc/hosts lines
#   cluster.sh status           one line per daemon, then sinfo; exit 0 only if everything is healthy
#   cluster.sh missing          the Debian packages that `start` would install, one a line
#   cluster.sh env              the exports that a client shell needs: eval "$(tests/slurm/cluster.sh env)"
#   cluster.sh node-down NODE   simulate a node's crash (its processes vanish at once)
#   cluster.sh node-up   NODE   bring a crashed node back
#   cluster.sh restart-controller   stop slurmctld and start it again, jobs kept
#
# Settings (environment, all optional; `start` remembers them for the other verbs):
#   LSL_DIR=/var/tmp/lora-dpo-slurm  state directory: config, keys, logs, spool, pid files; nothing else is written,
#                                 except network namespaces (net=ns) or a marked block in /etc/hosts (net=flat)
#   LSL_NODES=4  LSL_CPUS=4  LSL_GPUS=4  LSL_MEM=4000(MB)   what each emulated node claims (may oversubscribe)
#   LSL_NET=auto|ns|flat          ns: each node has its own network+UTS+PID+mount namespace, so `hostname`, ports
#                                 and process death behave as on separate machines, and there is no way out of the
#                                 cluster. flat: all nodes share the host's network and differ by slurmd port.
#                                 auto: ns if the kernel allows, else flat
#   LSL_ACCT=none|dbd             dbd: private MariaDB + slurmdbd, so that sacct/sacctmgr/QOS work
#   LSL_USERS="root ..."          dbd only: users who may submit to the account "lab"
#   LSL_PORT=16817                slurmctld's port; slurmdbd PORT+2, MariaDB PORT+3, slurmd PORT+100+i (flat)
#   LSL_SUBNET=10.203.7           first three octets of the emulated network (net=ns)
#   LSL_PRIVATE_TMP=0|1           net=ns only: 1 gives each node a private /tmp (finds "not on a shared filesystem")
#   LSL_SHARED=DIR[:DIR...]       with LSL_PRIVATE_TMP=1: folders below /tmp that all nodes share all the same
#   LSL_EXTRA=FILE                a file whose lines are appended to slurm.conf
# shellcheck disable=SC1091,SC2016,SC2046 # its settings are written by itself; pids are words; `bash -c` expands
set -Eeuo pipefail
trap 'echo "cluster.sh: ERROR: line $LINENO: $BASH_COMMAND" >&2' ERR

VERB=${1:-}
LSL_DIR=${LSL_DIR:-/var/tmp/lora-dpo-slurm}
[[ $LSL_DIR = /* ]] || LSL_DIR=$PWD/$LSL_DIR
if [[ $VERB != start && -r $LSL_DIR/settings ]]; then . "$LSL_DIR/settings"; fi
: "${LSL_NODES:=4}" "${LSL_CPUS:=4}" "${LSL_GPUS:=4}" "${LSL_MEM:=4000}" "${LSL_NET:=auto}" "${LSL_ACCT:=none}"
: "${LSL_PORT:=16817}" "${LSL_SUBNET:=10.203.7}" "${LSL_PRIVATE_TMP:=0}" "${LSL_EXTRA:=}" "${LSL_USERS:=root}" "${LSL_SHARED:=}"
D=$LSL_DIR
ID=lsl$(printf %s "$D" | cksum | cut -d' ' -f1 | awk '{printf "%x", $1 % 65536}')   # names our bridge and netns
export PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$D/etc/slurm.conf

say()  { printf 'cluster.sh: %s\n' "$*" >&2; }
die()  { say "ERROR: $*"; exit 1; }
nodes() { local i; for ((i = 1; i <= LSL_NODES; i++)); do echo "node$i"; done; }

# ---- processes: pid files only, and only if the process is really ours ----------------------------------------
p_state() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; printf %s "${s%% *}"; }
p_alive() { local s; s=$(p_state "$1") || return 1; [[ $s != Z && $s != X ]]; }     # kill -0 succeeds on zombies
p_ours()  { { tr '\0' '\n' <"/proc/$1/environ"; } 2>/dev/null | grep -qxF "LOCAL_SLURM_ID=$D"; }
pid_of()  { local p; p=$(cat "$D/pid/$1" 2>/dev/null) && [[ $p =~ ^[0-9]+$ ]] && p_alive "$p" && p_ours "$p" && echo "$p"; }
stop_one() {  # NAME [SIGNAL [SECONDS]]
  local p i; p=$(pid_of "$1") || { rm -f "$D/pid/$1"; return 0; }
  kill -"${2:-TERM}" "$p" 2>/dev/null || true
  for ((i = 0; i < ${3:-10} * 20; i++)); do p_alive "$p" || break; sleep 0.05; done
  if p_alive "$p"; then say "$1 ($p) did not stop; killing"; kill -KILL "$p" 2>/dev/null || true; fi
  rm -f "$D/pid/$1"
}
spawn() {     # NAME CMD...: a detached daemon in the foreground mode, its pid in $D/pid/NAME, output in $D/log/NAME.out
  local name=$1; shift                       # the mark in its environment is how we later know that the pid is ours
  LOCAL_SLURM_ID=$D setsid "$@" </dev/null >>"$D/log/$name.out" 2>&1 9>&- &
  echo $! >"$D/pid/$name"
}
wait_for() {  # SECONDS WHAT CMD...
  local n=$1 what=$2 i; shift 2
  for ((i = 0; i < n * 10; i++)); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  say "timed out after $n s waiting for $what"; return 1
}
leftovers() { # pids of processes that carry our mark, whether or not a pid file names them
  local f p
  { grep -lzxF "LOCAL_SLURM_ID=$D" /proc/[0-9]*/environ || true; } 2>/dev/null | while read -r f; do
    p=${f#/proc/}; p=${p%/environ}; if p_alive "$p"; then echo "$p"; fi
  done
}

# net=flat: slurmstepd blanks its environment and outlives slurmd, so find it by the socket it listens on in our spool
step_pids() { # NODE
  local inode path f
  while read -r _ _ _ _ _ _ inode path; do
    [[ $path = "$D/spool/$1/"* ]] || continue
    find /proc/[0-9]*/fd -lname "socket:\\[$inode\\]" 2>/dev/null || true
  done </proc/net/unix | while read -r f; do f=${f#/proc/}; echo "${f%%/*}"; done | sort -u
}
tree() {      # the given pids and all their descendants
  (($#)) || return 0
  { cat /proc/[0-9]*/stat || true; } 2>/dev/null | sed -nE 's/^([0-9]+) .*\) [A-Za-z] ([0-9]+) .*/\1 \2/p' |
    awk -v roots="$*" 'BEGIN{n=split(roots,r," ");for(i=1;i<=n;i++)in_[r[i]]=1}{par[$1]=$2}
    END{do{c=0;for(p in par)if(!(p in in_)&&(par[p] in in_)){in_[p]=1;c=1}}while(c);for(p in in_)print p}'
}

# ---- packages ---------------------------------------------------------------------------------------------------
missing_packages() {
  command -v munged    >/dev/null || echo munge
  command -v slurmctld >/dev/null || echo slurmctld
  command -v slurmd    >/dev/null || echo slurmd
  command -v sbatch    >/dev/null || echo slurm-client
  [[ $LSL_NET = flat ]] || command -v ip >/dev/null || echo iproute2
  if [[ $LSL_ACCT = dbd ]]; then
    command -v slurmdbd >/dev/null || echo slurmdbd
    command -v mariadbd >/dev/null || echo mariadb-server
  fi
}
install_packages() {
  local pk=() t0=$SECONDS
  mapfile -t pk < <(missing_packages)
  ((${#pk[@]})) || return 0
  say "installing ${pk[*]} with apt-get; their services are not started"
  # Debian's packages start their services on install unless policy-rc.d forbids it
  local made_policy=0
  if [[ ! -e /usr/sbin/policy-rc.d ]]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made_policy=1; fi
  { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends "${pk[@]}"; } \
    >"$D/log/apt.log" 2>&1 || { tail -20 "$D/log/apt.log" >&2; ((made_policy)) && rm -f /usr/sbin/policy-rc.d; die "apt-get failed ($D/log/apt.log)"; }
  ((made_policy)) && rm -f /usr/sbin/policy-rc.d
  say "installed in $((SECONDS - t0)) s"
}

# ---- network ----------------------------------------------------------------------------------------------------
addr_of() { echo "$LSL_SUBNET.$((10 + ${1#node}))"; }
ns_possible() {
  command -v ip >/dev/null && command -v unshare >/dev/null && command -v nsenter >/dev/null || return 1
  ip link add "$ID-t" type bridge 2>/dev/null || return 1; ip link del "$ID-t"
  ip netns add "$ID-t" 2>/dev/null || return 1; ip netns del "$ID-t"
  unshare --mount --uts --ipc --pid --fork --mount-proc true 2>/dev/null
}
net_up_ns() {
  local n i=0
  ip link add "$ID-br" type bridge
  ip addr add "$LSL_SUBNET.1/24" dev "$ID-br"
  ip link set "$ID-br" up
  for n in $(nodes); do i=$((i + 1))
    ip netns add "$ID-$n"
    ip link add "$ID-v$i" type veth peer name eth0 netns "$ID-$n"
    ip link set "$ID-v$i" master "$ID-br" up
    ip -n "$ID-$n" link set lo up
    ip -n "$ID-$n" addr add "$(addr_of "$n")/24" dev eth0
    ip -n "$ID-$n" link set eth0 up
  done
}
net_down() {
  local l
  if command -v ip >/dev/null; then
    for l in $(ip netns list 2>/dev/null | awk -v p="$ID-" 'index($1,p)==1{print $1}'); do ip netns del "$l" || true; done
    for l in $(ip -o link show 2>/dev/null | awk -F': ' -v p="$ID-" '{sub(/@.*/,"",$2)} index($2,p)==1{print $2}'); do ip link del "$l" 2>/dev/null || true; done
  fi
  if grep -qF "# $ID" /etc/hosts 2>/dev/null; then   # not sed -i: in containers /etc/hosts is a mount point
    local keep; keep=$(grep -vF "# $ID" /etc/hosts || true); printf '%s\n' "$keep" >/etc/hosts
  fi
}

# ---- configuration ----------------------------------------------------------------------------------------------
write_config() {
  local n i ctl_addr=127.0.0.1 hosts="" gpus=""
  [[ $LSL_NET = ns ]] && ctl_addr=$LSL_SUBNET.1
  # /etc/hosts as the nodes see it; its first line is also how this script notices that it runs inside a node
  hosts="# local-slurm node of $D"$'\n127.0.0.1 localhost\n::1 localhost ip6-localhost\n'
  if [[ $LSL_NET = ns ]]; then
    hosts+="$ctl_addr login $(uname -n)"$'\n'
    for n in $(nodes); do hosts+="$(addr_of "$n") $n"$'\n'; done
    printf '%s' "$hosts" >"$D/etc/hosts"
    # no DNS in there: a resolver that can not be reached costs torch ten seconds at each rendezvous
    : >"$D/etc/resolv.conf"; printf 'passwd: files\ngroup: files\nhosts: files\n' >"$D/etc/nsswitch.conf"
  else
    if ! printf '127.0.0.1 %s # %s\n' "$(nodes | tr '\n' ' ')" "$ID" >>/etc/hosts; then say "WARNING: /etc/hosts is not writable: node names will not resolve"; fi
  fi
  # stand-in GPUs: slurmd wants character devices whose names end in the index
  if ((LSL_GPUS > 0)); then
    for ((i = 0; i < LSL_GPUS; i++)); do ln -sfn /dev/null "$D/dev/gpu$i"; done
    gpus=" Gres=gpu:fake:$LSL_GPUS"
    printf 'AutoDetect=off\nNodeName=node[1-%d] Name=gpu Type=fake File=%s/dev/gpu[0-%d]\n' "$LSL_NODES" "$D" $((LSL_GPUS - 1)) >"$D/etc/gres.conf"
  else : >"$D/etc/gres.conf"; fi
  cat >"$D/etc/slurm.conf" <<EOF
# written by tests/slurm/cluster.sh; net=$LSL_NET acct=$LSL_ACCT
ClusterName=local
SlurmctldHost=localhost($ctl_addr)
SlurmctldPort=$LSL_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/socket
CredType=cred/munge
StateSaveLocation=$D/ctld
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=$D/etc/mail
# one machine plays every node: no cgroups, no binding, claimed resources may exceed the real ones
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SlurmdParameters=config_overrides
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((LSL_MEM / LSL_CPUS))
GresTypes=gpu
# quick reactions, for tests
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=180
SlurmdTimeout=60
SlurmctldTimeout=30
MessageTimeout=30
InactiveLimit=0
MinJobAge=3600
ReturnToService=2
EnforcePartLimits=ALL
# preemption
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PriorityType=priority/multifactor
PriorityWeightAge=1000
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
EOF
  if [[ $LSL_ACCT = dbd ]]; then cat >>"$D/etc/slurm.conf" <<EOF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$ctl_addr
AccountingStoragePort=$((LSL_PORT + 2))
AccountingStoragePass=$D/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
EOF
  fi
  i=0
  for n in $(nodes); do i=$((i + 1))
    local where="NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((LSL_PORT + 100 + i))"
    [[ $LSL_NET = ns ]] && where="NodeHostname=$n NodeAddr=$(addr_of "$n") Port=$((LSL_PORT + 1))"
    echo "NodeName=$n $where CPUs=$LSL_CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$LSL_CPUS ThreadsPerCore=1 RealMemory=$LSL_MEM$gpus State=UNKNOWN"
  done >>"$D/etc/slurm.conf"
  cat >>"$D/etc/slurm.conf" <<EOF
PartitionName=batch   Nodes=node[1-$LSL_NODES] Default=YES PriorityTier=10 PreemptMode=OFF DefaultTime=10 MaxTime=1-0 State=UP
PartitionName=preempt Nodes=node[1-$LSL_NODES] PriorityTier=1 PreemptMode=REQUEUE GraceTime=300 DefaultTime=10 MaxTime=1-0 State=UP
PartitionName=short   Nodes=node[1-$LSL_NODES] PriorityTier=10 PreemptMode=OFF DefaultTime=1 MaxTime=2 MaxNodes=1 State=UP
EOF
  [[ -z $LSL_EXTRA ]] || cat "$LSL_EXTRA" >>"$D/etc/slurm.conf"
  cat >"$D/etc/mail" <<EOF
#!/bin/sh
{ echo "== mail \$*"; cat; } >>"$D/log/mail.log"
EOF
  chmod 755 "$D/etc/mail"
  if [[ $LSL_ACCT = dbd ]]; then
    (umask 077; cat >"$D/etc/slurmdbd.conf" <<EOF
AuthType=auth/munge
AuthInfo=socket=$D/munge/socket
DbdHost=localhost
DbdAddr=$ctl_addr
DbdPort=$((LSL_PORT + 2))
SlurmUser=root
PidFile=$D/run/slurmdbd.pid
LogFile=$D/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((LSL_PORT + 3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
EOF
    )
  fi
}

# ---- daemons ----------------------------------------------------------------------------------------------------
start_munge() {
  if [[ ! -s $D/munge/key ]]; then (umask 077; head -c 128 /dev/urandom >"$D/munge/key"); fi
  rm -f "$D/munge/socket" "$D/munge/socket.lock"
  spawn munged munged --foreground --force --socket="$D/munge/socket" --key-file="$D/munge/key" \
    --pid-file="$D/run/munged.pid" --seed-file="$D/munge/seed" --num-threads=4
  wait_for 60 munged munge -S "$D/munge/socket" -n || { tail -5 "$D/log/munged.out" >&2; return 1; }
}
sql() { mariadb --no-defaults --socket="$D/mysql.sock" -uroot "$@"; }
start_dbd() {
  if [[ ! -d $D/mysql/mysql ]]; then
    mariadb-install-db --no-defaults --datadir="$D/mysql" --user=root --auth-root-authentication-method=normal \
      --skip-test-db --skip-name-resolve >"$D/log/mariadb-install.log" 2>&1
  fi
  spawn mariadbd mariadbd --no-defaults --datadir="$D/mysql" --user=root --socket="$D/mysql.sock" --port=$((LSL_PORT + 3)) \
    --bind-address=127.0.0.1 --pid-file="$D/run/mariadbd.pid" --skip-name-resolve --skip-log-bin \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  wait_for 30 MariaDB sql -e 'select 1' || { tail -5 "$D/log/mariadbd.out" >&2; return 1; }
  sql -e "create database if not exists slurm_acct_db; create user if not exists slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
  SLURM_CONF=$D/etc/slurm.conf spawn slurmdbd slurmdbd -D
  wait_for 30 slurmdbd sacctmgr -n show cluster || { tail -5 "$D/log/slurmdbd.log" >&2; return 1; }
  if [[ -z $(sacctmgr -nP show cluster local 2>/dev/null) ]]; then
    { sacctmgr -i add cluster local; sacctmgr -i add account lab; sacctmgr -i add qos low; sacctmgr -i add user "${LSL_USERS// /,}" account=lab; } >>"$D/log/sacctmgr.log" 2>&1 || true
  fi
}
start_node() {
  local n=$1
  mkdir -p "$D/spool/$n"
  if [[ $LSL_NET = ns ]]; then
    # bash is PID 1 of the node (it reaps orphans); if the unshare process dies, --kill-child takes the node with it
    spawn "$n" nsenter --net="/run/netns/$ID-$n" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
      bash -c '
        set -e; echo "$1" >/proc/sys/kernel/hostname
        for f in hosts resolv.conf nsswitch.conf; do if [ -e /etc/$f ]; then mount --bind "$2/etc/$f" /etc/$f; fi; done
        if [ -d /etc/slurm ]; then mount --bind "$2/etc" /etc/slurm; fi
        mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm
        if [ "$3" = 1 ]; then
          mkdir -p "$2/shared"; mount --bind /tmp "$2/shared"; mount -t tmpfs -o mode=1777 tmpfs /tmp
          IFS=:; for f in $4; do mkdir -p "$f"; mount --bind "$2/shared${f#/tmp}" "$f"; done; unset IFS
        fi
        slurmd -D -N "$1" & pid=$!
        while kill -0 $pid 2>/dev/null; do wait $pid || true; done' node-init "$n" "$D" "$LSL_PRIVATE_TMP" "$LSL_SHARED"
  else
    spawn "$n" slurmd -D -N "$n"
  fi
}
nodes_ready() { # every node idle (or in use), none down, drained, unknown or not responding
  local s; s=$(sinfo -h -N -p batch -o '%N %T' 2>/dev/null) || return 1
  [[ $(wc -l <<<"$s") -eq $LSL_NODES ]] && ! grep -vqE ' (idle|mixed|allocated|completing)$' <<<"$s"
}
healthy() {
  local n; pid_of munged >/dev/null && pid_of slurmctld >/dev/null || return 1
  for n in $(nodes); do pid_of "$n" >/dev/null || return 1; done
  [[ $LSL_ACCT != dbd ]] || { pid_of mariadbd >/dev/null && pid_of slurmdbd >/dev/null; } || return 1
  nodes_ready
}

do_start() {
  local t0=$SECONDS n want="$LSL_NODES $LSL_CPUS $LSL_GPUS $LSL_MEM $LSL_NET $LSL_ACCT $LSL_USERS $LSL_PORT $LSL_SUBNET $LSL_PRIVATE_TMP $LSL_SHARED $LSL_EXTRA"
  [[ -z $LSL_EXTRA ]] || want+=" $(cksum <"$LSL_EXTRA")"
  if [[ -r $D/settings && $(sed -n 's/^# want //p' "$D/settings") = "$want" ]] && (. "$D/settings"; healthy); then
    say "already up ($D)"; return 0
  fi
  [[ ! -r $D/settings ]] || (. "$D/settings"; do_stop)
  local f
  for f in ${LSL_SHARED//:/ }; do [[ $f = /tmp/* && -d $f ]] || die "LSL_SHARED: $f is not a folder below /tmp"; done
  [[ $LSL_PRIVATE_TMP = 0 || $D/ != /tmp/* ]] || die "LSL_PRIVATE_TMP=1 needs an LSL_DIR outside /tmp"
  ((${#D} <= 60)) || die "LSL_DIR is too long (unix socket paths are limited to 107 characters)"
  chmod 755 "$D"
  rm -rf "${D:?}"/{ctld,spool,run,pid,dev,etc,log,mysql,mysql.sock}
  mkdir -p "$D"/{ctld,spool,run,pid,dev,etc,log,munge}; chmod 755 "$D/munge"
  install_packages
  if [[ $LSL_NET = auto ]]; then if ns_possible; then LSL_NET=ns; else LSL_NET=flat; fi; fi
  { echo "# want $want"
    for n in LSL_NODES LSL_CPUS LSL_GPUS LSL_MEM LSL_NET LSL_ACCT LSL_PORT LSL_SUBNET; do printf '%s=%q\n' "$n" "${!n}"; done
    printf 'LSL_PRIVATE_TMP=%q\nLSL_SHARED=%q\n' "$LSL_PRIVATE_TMP" "$LSL_SHARED"; } >"$D/settings"
  net_down
  for n in "$LSL_PORT" $([[ $LSL_ACCT != dbd ]] || echo $((LSL_PORT + 2)) $((LSL_PORT + 3))); do
    ! (exec 3<>"/dev/tcp/127.0.0.1/$n") 2>/dev/null || die "port $n is in use: another cluster? set LSL_PORT (and LSL_SUBNET)"
  done
  [[ $LSL_NET != ns ]] || net_up_ns
  write_config
  start_munge || die "munged did not start ($D/log/munged.out)"
  [[ $LSL_ACCT != dbd ]] || start_dbd || die "accounting did not start"
  spawn slurmctld slurmctld -D -c
  wait_for 120 slurmctld scontrol ping || { tail -20 "$D/log/slurmctld.log" >&2; die "slurmctld did not start"; }
  for n in $(nodes); do start_node "$n"; done
  wait_for 180 'all nodes idle' nodes_ready || { sinfo -N -l >&2; tail -n 5 "$D"/log/slurmd-*.log "$D"/log/node*.out >&2; die "nodes did not come up"; }
  if [[ $LSL_NET = ns ]] && ((LSL_NODES > 1)); then   # Docker's firewall rules can cut bridged traffic
    nsenter --net="/run/netns/$ID-node1" timeout 60 bash -c "exec 3<>/dev/tcp/$(addr_of node2)/$((LSL_PORT + 1))" 2>/dev/null ||
      die "node1 can not reach node2 (net.bridge.bridge-nf-call-iptables with a FORWARD policy of DROP?): fix that, or set LSL_NET=flat"
  fi
  say "up in $((SECONDS - t0)) s: $LSL_NODES nodes, net=$LSL_NET, acct=$LSL_ACCT; eval \"\$($0 env)\""
}
do_stop() {
  local n i p
  [[ -d $D/pid ]] || { net_down; return 0; }
  if pid_of slurmctld >/dev/null && timeout 5 scontrol ping >/dev/null 2>&1; then
    timeout 10 scancel --state=PENDING --user="$(id -un)" >/dev/null 2>&1 || true
    timeout 10 squeue -h -o %A 2>/dev/null | sort -u | xargs -r timeout 10 scancel >/dev/null 2>&1 || true
    for ((i = 0; i < 70; i++)); do [[ -z $(timeout 5 squeue -h 2>/dev/null) ]] && break; sleep 0.1; done
  fi
  if [[ $LSL_NET = ns ]]; then n=KILL; else n=TERM; fi   # unshare(1) ignores TERM; killing it ends the whole namespace
  for p in $(nodes); do stop_one "$p" $n 5; done
  stop_one slurmctld TERM 10
  stop_one slurmdbd TERM 10
  stop_one mariadbd TERM 20
  stop_one munged TERM 5
  if [[ $LSL_NET = flat ]]; then for n in $(nodes); do for p in $(tree $(step_pids "$n")); do kill -KILL "$p" 2>/dev/null || true; done; done; fi
  for p in $(leftovers); do kill -TERM "$p" 2>/dev/null || true; done
  for ((i = 0; i < 40; i++)); do [[ -z $(leftovers) ]] && break; sleep 0.1; done
  for p in $(leftovers); do say "killing leftover process $p"; kill -KILL "$p" 2>/dev/null || true; done
  net_down
  rm -rf "$D/pid" "$D/settings"
  say "stopped"
}
do_status() {
  local n p bad=0 all=(munged slurmctld)
  [[ -r $D/settings ]] || { echo "cluster.sh: not running ($D)"; return 3; }
  [[ $LSL_ACCT != dbd ]] || all=(munged mariadbd slurmdbd slurmctld)
  for n in "${all[@]}" $(nodes); do
    if p=$(pid_of "$n"); then echo "$n: running (pid $p)"; else echo "$n: NOT RUNNING"; bad=1; fi
  done
  sinfo -N -p batch -o '%N %T %C %m %G %E' || bad=1
  nodes_ready || bad=1
  return $bad
}
node_down() { # the crash of a machine: nothing gets to say goodbye
  local n=$1 p q all
  p=$(pid_of "$n") || die "$n is not running"
  if [[ $LSL_NET = ns ]]; then stop_one "$n" KILL 5; return; fi   # takes its whole PID namespace with it
  kill -STOP "$p"; all=$(tree $(step_pids "$n"))
  for q in $all "$p"; do kill -KILL "$q" 2>/dev/null || true; done
  rm -f "$D/pid/$n"
}

[[ $VERB = env ]] || ! grep -qsxF "# local-slurm node of $D" /etc/hosts || die "this is one of the cluster's own nodes: run me on the host"
lock() {
  [[ $EUID -eq 0 ]] || die "must be root"
  # `start` empties this directory, so it must be ours: new, empty, or marked by an earlier start
  [[ ! -d $D || -e $D/.local-slurm || -z $(ls -A "$D") ]] || die "$D exists and is not a directory of cluster.sh"
  mkdir -p "$D"; : >>"$D/.local-slurm"; exec 9>>"$D/.local-slurm"
  flock -w 120 9 || die "another cluster.sh is busy in $D"
}
case $VERB in
  start)     lock; do_start ;;
  stop)      lock; do_stop ;;
  status)    do_status || exit $? ;;
  missing)   missing_packages ;;
  restart-controller)
             lock; [[ -r $D/settings ]] || die "not running"
             stop_one slurmctld TERM 60; spawn slurmctld slurmctld -D
             wait_for 120 slurmctld scontrol ping || die "slurmctld did not start again" ;;
  env)       printf 'export SLURM_CONF=%q LSL_DIR=%q\n' "$SLURM_CONF" "$D" ;;
  node-down|node-up)
             lock; [[ -r $D/settings ]] || die "not running"
             nodes | grep -qxF "${2:-}" || die "no such node: '${2:-}'"
             if [[ $VERB = node-down ]]; then node_down "$2"; else pid_of "$2" >/dev/null || start_node "$2"; fi ;;
  *)         sed -n '2,/^set /{/^#/p}' "$0"; exit 2 ;;
esac
