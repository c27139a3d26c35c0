# bash completion for pith
_pith() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command="" i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    [[ ${COMP_WORDS[i]} != -* ]] && { command=${COMP_WORDS[i]}; break; }
  done
  if [[ -z $command ]]; then
    COMPREPLY=($(compgen -W "chat run convert eval inspect verify plan tokenize bench synth doctor help --help --version" -- "$cur"))
    return
  fi
  case $prev in
    --kernels) COMPREPLY=($(compgen -W "auto scalar avx2 avxvnni avx512-plain avx512 amx neon" -- "$cur")); return ;;
    --device) COMPREPLY=($(compgen -W "auto cpu cuda" -- "$cur")); return ;;
    --gpu-layers) COMPREPLY=($(compgen -W "all auto" -- "$cur")); return ;;
    --kv) COMPREPLY=($(compgen -W "f16 i8" -- "$cur")); return ;;
    --effort) COMPREPLY=($(compgen -W "fast normal" -- "$cur")); return ;;
    --task) COMPREPLY=($(compgen -W "hellaswag arc-easy arc-challenge winogrande piqa lambada blimp" -- "$cur")); return ;;
    --preset) COMPREPLY=($(compgen -W "best paper" -- "$cur")); return ;;
  esac
  if [[ $cur == -* ]]; then
    local options
    options=$(pith "$command" --help 2>/dev/null | grep -oE -- '(^| |,)--?[a-z][a-z-]*' | tr -d ' ,')
    COMPREPLY=($(compgen -W "$options" -- "$cur"))
  elif [[ $command == help ]]; then
    COMPREPLY=($(compgen -W "chat run convert eval inspect verify plan tokenize bench synth doctor" -- "$cur"))
  else
    compopt -o filenames
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -F _pith pith
